"""Convolutions by Monarch decompositions of the Fourier transform, and the paper's small example of one.

    example          Out = W1 (Scale * (W0 I0))^T            arXiv 2405.07518, Figure 3: 1024 x 128 and 1024 x 1024
    fft_conv         y = IFFT(FFT(x) * FFT(kernel))           FlashFFTConv, arXiv 2311.05908: FFT as p small matrices

A transform of N = f1 ... fp points is p products with fi x fi matrices, with a twiddle product and a swap of axes
between them. The spectrum is never reordered, since the inverse undoes the steps in reverse. Complex numbers are pairs
of real values; the first and the last product exploit that input and output are real. The paper gives neither order nor
layout of its benchmark: order 4 for 2^20 points, and this layout, are our choice.
Knows nothing about machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from coterie.core.dtypes import DType
from coterie.core.shapes import Shape, Times
from coterie.graph.ir import Attr, Graph, GraphBuilder, Kind

MILLION = (32, 32, 32, 32)  # 2^20 points
Pair = tuple[str, str]


def monarch_example(dtype: DType = DType.BF16) -> Graph:
    """Gemm0, Mul, Transpose, Gemm1 of the paper's Figure 3, each matrix product as rows times a weight's rows."""
    b = GraphBuilder("monarch-example", "example")
    long, short = 1024, 128
    x = b.value("i0", (Times(long), short), dtype, Kind.INPUT)  # I0, a column to a row
    square: Shape = (Times(long), long)
    weight = {name: b.value(name, shape, dtype, Kind.WEIGHT) for name, shape in _EXAMPLE.items()}
    for name in ("gemm0", "mul", "t"):
        b.value(name, square, dtype, Kind.TENSOR)
    b.value("out", (Times(long), short), dtype, Kind.OUTPUT)
    b.op("linear", "gemm0", (x, weight["w0"], ""), ("gemm0",))
    b.op("mul_table", "mul", ("gemm0", weight["scale"]), ("mul",))
    b.op("swap", "transpose", ("mul",), ("t",), outer=long, middle=1, inner=long)
    b.op("linear", "gemm1", ("t", weight["w1"], ""), ("out",))
    return b.build()


_EXAMPLE = {"w0": (1024, 128), "scale": (1024, 1024), "w1": (128, 1024)}


def fft_conv_graph(factors: Sequence[int] = MILLION, dtype: DType = DType.BF16) -> Graph:
    """A circular convolution of each sequence of prod(factors) points; B counts sequences, of any batch and channel.

    Input `x` and output `y` are [first factor, the rest] for each sequence, points in order.
    """
    return _Convolution(tuple(factors), dtype).build()


class _Convolution:
    """Builds the graph; a pair is the names of a real and an imaginary part."""

    def __init__(self, factors: tuple[int, ...], dtype: DType) -> None:
        self.factors, self.dtype = factors, dtype
        self.rests = tuple(prod(factors[i + 1 :]) for i in range(len(factors)))
        self.builder = GraphBuilder("fft-conv", "conv")

    def build(self) -> Graph:
        b, f, rest, last = self.builder, self.factors, self.rests, len(self.factors) - 1
        b.value("x", (Times(f[0]), rest[0]), self.dtype, Kind.INPUT)
        x = self._swap("first", "x", f[0], 1, rest[0])
        pair = (self._product("dft.0/re", x, "dft.0.cos"), self._product("dft.0/im", x, "dft.0.sin"))
        for i in range(1, len(f)):
            pair = self._rotate(f"twiddle.{i - 1}", pair, f"twiddle.{i - 1}", 1)
            pair = self._swap_pair(f"swap.{i}", pair, f[i], rest[i], f[i - 1])
            pair = self._transform(f"dft.{i}", pair, i, 1)
        pair = self._rotate("filter", pair, "spectrum", 1)
        for i in range(last, 0, -1):
            pair = self._transform(f"idft.{i}", pair, i, -1)
            pair = self._swap_pair(f"back.{i}", pair, f[i - 1], rest[i], f[i])
            pair = self._rotate(f"untwiddle.{i - 1}", pair, f"twiddle.{i - 1}", -1)
        parts = (self._product("idft.0/c", pair[0], "dft.0.cos"), self._product("idft.0/s", pair[1], "dft.0.sin"))
        real = self._op("add", "idft.0/re", parts, b.shape(parts[0]))
        b.value("y", (Times(f[0]), rest[0]), self.dtype, Kind.OUTPUT)
        b.op("swap", "last", (real,), ("y",), outer=rest[0], middle=1, inner=f[0])
        return b.build()

    def _transform(self, name: str, pair: Pair, i: int, sign: int) -> Pair:
        """Multiply each row by the Fourier matrix of factor i, or by its conjugate."""
        cos, sin = f"dft.{i}.cos", f"dft.{i}.sin"
        products = [self._product(f"{name}/{k}", x, w) for k, (x, w) in enumerate(_four(pair, cos, sin))]
        return self._combine(name, products, sign)

    def _rotate(self, name: str, pair: Pair, table: str, sign: int) -> Pair:
        """Multiply elementwise by a complex table, or by its conjugate."""
        cos, sin = f"{table}.cos", f"{table}.sin"
        products = []
        for k, (x, w) in enumerate(_four(pair, cos, sin)):
            rows, columns = self.builder.shape(x)
            size = self._table_rows(table)
            weight = self.builder.value(w, (size, columns), self.dtype, Kind.WEIGHT)
            products.append(self._op("mul_table", f"{name}/{k}", (x, weight), (rows, columns)))
        return self._combine(name, products, sign)

    def _table_rows(self, table: str) -> int:
        if table == "spectrum":
            return prod(self.factors[:-1])
        return self.rests[int(table.rpartition(".")[2])]

    def _combine(self, name: str, products: list[str], sign: int) -> Pair:
        """(re c - im s, re s + im c), or with the conjugate (re c + im s, im c - re s)."""
        rc, ims, rs, ic = products
        shape = self.builder.shape(rc)
        real = self._op("sub" if sign > 0 else "add", f"{name}/re", (rc, ims), shape)
        kind, parts = ("add", (rs, ic)) if sign > 0 else ("sub", (ic, rs))
        return real, self._op(kind, f"{name}/im", parts, shape)

    def _product(self, name: str, x: str, weight: str) -> str:
        f = self.factors[int(weight.split(".")[1])]
        self.builder.value(weight, (f, f), self.dtype, Kind.WEIGHT)
        return self._op("linear", name, (x, weight, ""), self.builder.shape(x))

    def _swap_pair(self, name: str, pair: Pair, outer: int, middle: int, inner: int) -> Pair:
        real, imaginary = (
            self._swap(f"{name}/{part}", x, outer, middle, inner) for part, x in zip(("re", "im"), pair, strict=True)
        )
        return real, imaginary

    def _swap(self, name: str, x: str, outer: int, middle: int, inner: int) -> str:
        shape: Shape = (Times(prod(self.factors) // outer), outer)
        return self._op("swap", name, (x,), shape, outer=outer, middle=middle, inner=inner)

    def _op(self, kind: str, name: str, inputs: tuple[str, ...], shape: Shape, **attrs: Attr) -> str:
        y = self.builder.value(name, shape, self.dtype, Kind.TENSOR)
        self.builder.op(kind, name, inputs, (y,), **attrs)
        return y


def _four(pair: Pair, cos: str, sin: str) -> tuple[tuple[str, str], ...]:
    """The products of a complex multiplication: re c, im s, re s, im c."""
    real, imaginary = pair
    return (real, cos), (imaginary, sin), (real, sin), (imaginary, cos)
