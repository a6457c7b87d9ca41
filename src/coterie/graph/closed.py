"""The cost of a region in closed form: derived once by running `region_cost` on traced sizes, then a few products.

    traced sizes -> region_cost -> each count as    constant + a T + b B + c R + d context_tokens + e pairs
                                   and each comparison made on the way (of windows, say): a form is valid for sizes
                                   for which all of them have the same outcome; other sizes get another form

All numbers are integers, so a form gives exactly what counting gives. Costs that are not linear in the sizes (a product
of two sizes, a rounded share) are counted anew each time. Knows nothing about what is counted, or about machines.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

from coterie.core.shapes import Sizes
from coterie.graph.cost import Cost, region_cost
from coterie.graph.program import Program, Region

MAX_FORMS = 16  # per region; one that needs more is counted anew each time
_Linear: TypeAlias = tuple[int, int, int, int, int, int]
_Compare: TypeAlias = Callable[[int, int], bool]
_Check: TypeAlias = tuple[_Linear, _Compare, bool]


class _NoFormError(Exception):
    """A count is not linear in the sizes."""


class _Traced:
    """An integer and its linear dependence on the sizes. Comparisons with it are recorded in `checks`.

    Not a subclass of int: an operation that cannot be traced, such as rounding, is a TypeError and not a wrong form.
    """

    def __init__(self, number: int, linear: _Linear, checks: list[_Check]) -> None:
        self.number, self.linear, self.checks = number, linear, checks

    def _sum(self, other: int | _Traced, sign: int) -> _Traced:
        number, linear = _parts(other)
        terms = [mine + sign * theirs for mine, theirs in zip(self.linear, linear, strict=True)]
        return _Traced(self.number + sign * number, _six(terms), self.checks)

    def __add__(self, other: int | _Traced) -> _Traced:
        return self._sum(other, 1)

    __radd__ = __add__

    def __sub__(self, other: int | _Traced) -> _Traced:
        return self._sum(other, -1)

    def __rsub__(self, other: int) -> _Traced:
        return (self * -1)._sum(other, 1)

    def __neg__(self) -> _Traced:
        return self * -1

    def __mul__(self, other: int | _Traced) -> _Traced:
        number, linear = _parts(other)
        if any(linear[:5]) and any(self.linear[:5]):
            raise _NoFormError
        factor, varying = (self.number, linear) if any(linear[:5]) else (number, self.linear)
        return _Traced(self.number * number, _six([factor * term for term in varying]), self.checks)

    __rmul__ = __mul__

    def __floordiv__(self, other: int | _Traced) -> _Traced:
        if isinstance(other, _Traced) or any(term % other for term in self.linear):
            raise _NoFormError
        return _Traced(self.number // other, _six([term // other for term in self.linear]), self.checks)

    def _compared(self, other: int | _Traced, how: _Compare) -> bool:
        result = how(self.number, _parts(other)[0])
        self.checks.append((self._sum(other, -1).linear, how, result))
        return result

    def __lt__(self, other: int | _Traced) -> bool:
        return self._compared(other, operator.lt)

    def __gt__(self, other: int | _Traced) -> bool:
        return self._compared(other, operator.gt)

    def __eq__(self, other: object) -> bool:
        return self._compared(other, operator.eq) if isinstance(other, int | _Traced) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return self._compared(other, operator.ne) if isinstance(other, int | _Traced) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # a dict look-up would go unrecorded: TypeError

    def __bool__(self) -> bool:
        return self._compared(0, operator.ne)


class ClosedCost:
    """The cost of one region of a program in any step. `is_counted`: it has no closed form, or too many."""

    def __init__(self, program: Program, region: Region) -> None:
        self._program, self._region = program, region
        self._forms: list[tuple[Sequence[_Check], Sequence[_Linear]]] = []
        self.is_counted = False

    def of(self, sizes: Sizes) -> Cost:
        """The same as `region_cost`."""
        if self.is_counted:
            return region_cost(self._program, self._region, sizes)
        numbers = (sizes.T, sizes.B, sizes.R, sizes.context_tokens, sizes.pairs)
        for checks, form in self._forms:
            if all(how(_value(linear, numbers), 0) is result for linear, how, result in checks):
                return Cost(*[_value(linear, numbers) for linear in form])
        return self._first_seen(sizes, numbers)

    def _first_seen(self, sizes: Sizes, numbers: Sequence[int]) -> Cost:
        checks: list[_Check] = []
        traced = [_Traced(n, _six([i == k for k in range(6)]), checks) for i, n in enumerate(numbers)]
        try:
            found = region_cost(self._program, self._region, Sizes(*cast(list[int], traced)))
        except (_NoFormError, TypeError):
            self.is_counted = True
            return region_cost(self._program, self._region, sizes)
        counts = (found.flops, found.weight_bytes, found.input_bytes, found.output_bytes)
        form = [_parts(count)[1] for count in (*counts, found.kv_read_bytes, found.kv_write_bytes)]
        self._forms.append((tuple(check for check in dict.fromkeys(checks) if any(check[0][:5])), tuple(form)))
        self.is_counted = len(self._forms) > MAX_FORMS
        return Cost(*[_value(linear, numbers) for linear in form])


def _parts(number: int | _Traced) -> tuple[int, _Linear]:
    return (number.number, number.linear) if isinstance(number, _Traced) else (number, (0, 0, 0, 0, 0, number))


def _six(terms: Sequence[int]) -> _Linear:
    t, b, r, context, pairs, constant = terms
    return int(t), int(b), int(r), int(context), int(pairs), int(constant)


def _value(linear: _Linear, numbers: Sequence[int]) -> int:
    t, b, r, context, pairs, constant = linear
    return t * numbers[0] + b * numbers[1] + r * numbers[2] + context * numbers[3] + pairs * numbers[4] + constant
