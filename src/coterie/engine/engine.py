"""Engine: requests in, tokens out, one step at a time. Connects the parts that decide, compute and account.

    submit -> [queue] -> step: settle -> decide -> run -> account -> outputs

Knows nothing about clocks, threads, text models or which device works. Not thread-safe.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping

from coterie.core.errors import CoterieError, CrowdedError, RequestError
from coterie.device import Device, Event
from coterie.engine.admission import Admission
from coterie.engine.batch import Batch
from coterie.engine.batcher import Batcher
from coterie.engine.choice import choose_rows
from coterie.engine.expert_control import ExpertControl
from coterie.engine.groups import Groups
from coterie.engine.kv import KVPool
from coterie.engine.loads import Loads, as_error
from coterie.engine.log import DecisionLog
from coterie.engine.metrics import Metrics
from coterie.engine.policy import Policy
from coterie.engine.queue import Queue
from coterie.engine.ranks import Ranks
from coterie.engine.recording import Recording
from coterie.engine.request import FinishReason, Output, Request
from coterie.engine.reuse import Reuse
from coterie.engine.runner import Runner
from coterie.engine.scheduler import REPEATS, schedule_named
from coterie.engine.sequence import Sequence, drawn_again
from coterie.engine.served import ServedExpert, served_as
from coterie.engine.speculate.draft import Drafts
from coterie.engine.speculate.guess import keep_guesses
from coterie.engine.variants import variant_groups_of
from coterie.engine.vectors import take_vectors
from coterie.engine.view import Fetch, Run, Wait
from coterie.memory.split import Cache
from coterie.memory.victims import NO_EXPERTS

MAX_ROWS = 4096  # rows of an embedding loaded ahead: fetching more takes longer than the whole table


class Engine:
    """Serves requests for many experts on one device. `queue` is public: the waiting and running requests."""

    def __init__(
        self,
        device: Device,
        cache: Cache,
        kv_pool: KVPool,
        experts: Mapping[str, ServedExpert],
        policy: Policy | None = None,
        recording: Recording | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.metrics, self.log = Metrics(), DecisionLog()
        self._device, self._kv, self._experts, self._recording = device, kv_pool, experts, recording
        self._schedule, self._repeats_of = schedule_named(self.policy.schedule), REPEATS[self.policy.schedule]
        self._loads = Loads(device, cache, experts)
        self._runner = Runner(device, cache, kv_pool, recording)
        self._batcher = Batcher(kv_pool, self.policy, device)
        self.reuse = Reuse(kv_pool, self.policy.max_step_tokens, self.log, self.metrics)
        self.queue = Queue()
        self.drafts = Drafts(device, kv_pool, self._loads, self._runner, experts, self.policy, self.queue, self.log)
        self.admission = Admission(self.queue, self.policy.max_batch)
        self._ranks = Ranks(self.queue, self.reuse, self._batcher, self.drafts, self.log, self.policy)
        self.control = ExpertControl(cache, self._loads, self.queue, self.admission, experts, self.log)
        self._live, self._cancelled, self._outputs = dict[str, Sequence](), list[str](), list[Output]()
        variant_groups = variant_groups_of(experts) if self.policy.share_steps else {}
        self._groups = Groups(self.queue, self._loads, kv_pool, self.policy, variant_groups)
        self._decided, self._repeats = Run("", ()), 0  # the last decision, and for how many more steps it stands
        self.before_load: Callable[[str], object] = lambda name: None  # called with each expert about to be fetched

    def renewed(self, expert_id: str) -> None:
        """An expert was added, or its weights changed: drop all state cached about it."""
        for part in (self._batcher, self.drafts, self._runner):
            part.renewed(expert_id)
        self._groups.renewed(variant_groups_of(self._experts) if self.policy.share_steps else {})

    def check(self, request: Request) -> Sequence:
        """The sequence made of a request. Raises NotFoundError, RequestError or OversizeError if it can never run."""
        self._runner.check(request, expert := served_as(request.expert_id, self._experts))
        sequence = Sequence(request, expert.max_prompt_tokens + 1, self._device.now(), self._device.changes_logits())
        sequence.blocks = self._kv.check_fits(sequence.kv_tokens, len(sequence.tokens), expert.kv, request.request_id)
        return sequence

    def submit(self, request: Request) -> None:
        """Queue a request. Raises what `check` does, and RequestError if its id is in use."""
        if request.request_id in self._live:
            raise RequestError(request.request_id, "a request of that id is being served", "choose another id")
        self._live[request.request_id] = sequence = self.check(request)
        self.admission.add(sequence)
        self._changed(*self.admission.take_changed())
        self.metrics.submitted += 1
        self.log.add("submit", request.request_id, request.expert_id)

    def check_room(self, client: str, max_waiting: int, count: int = 1) -> None:
        """As Admission.check_room; also counts the requests refused for now."""
        try:
            self.admission.check_room(client, max_waiting, count)
        except CrowdedError:
            self.metrics.refused += count
            raise

    def cancel(self, request_id: str) -> None:
        """End a request at the next step; no effect if it has already ended."""
        self._cancelled += [request_id] if request_id in self._live else []

    @property
    def idle(self) -> bool:
        """True when a step would have nothing to do."""
        return not (self._live or self._outputs or self.control.pending_loads)

    @property
    def loading(self) -> bool:
        """True while experts are loading, even if no request waits for them any more."""
        return self._loads.under_way > 0

    @property
    def decisions(self) -> deque[tuple[str | int, ...]]:
        """The decision log, in order, without times: submit, fetch, evict, admit, reuse, run, finish."""
        return self.log.entries

    def step(self, until: float | None = None, arrival_s: float | None = None) -> list[Output]:
        """Settle, decide, run one step and account for it; or wait for a load, at most until `until` (device clock).

        `arrival_s`: the next arrival, if known; a run of several steps ends after the step during which it comes.
        """
        self._settle()
        if self.admission.held:
            self.admission.refill()
            self._changed(*self.admission.take_changed())
        if self.control.pending_loads:
            self._grant()
        decision, repeats = self._decide()
        if isinstance(decision, Run):
            batch = self._batch(decision, repeats)
            names = (decision.expert_id,) if batch.mix is None else batch.mix.experts
            whom = [self._experts[name] for name in names], [self._loads.residency(name) for name in names]
            others, until_s = (self._loads.awaited_events(), arrival_s) if batch.steps > 1 else ((), None)
            event = self._runner.run(*whom, batch, until_s, others)
            self._account(decision.expert_id, names, batch, event)
        elif (not self.idle or self.loading) and not self._outputs:
            self._device.wait_any(self._loads.awaited_events(), until)
        outputs, self._outputs = self._outputs, []
        return outputs

    def check_integrity(self) -> None:
        """Raise ValueError unless each KV block is in exactly one place and its recorded owners are the actual ones."""
        self._kv.check_integrity()

    # ---- settle: what has finished, failed or was cancelled since the last step

    def _settle(self) -> None:
        failed = self._loads.poll()
        for expert_id, error in failed.items():
            self.metrics.failed_fetches += 1
            self.log.add("fail", expert_id)
            self.log.report("failed", expert_id, str(error))
            self.fail(self.queue.of(expert_id), error)
            self.reuse.forget(expert_id)
            self.drafts.failed(expert_id)
        if self.control.pending_loads:
            self.control.settle(failed)
        for expert_id, seconds in self._loads.take_durations():
            self.metrics.switch.add(seconds)
            self.log.report("loaded", expert_id, seconds)
            self.drafts.loaded(expert_id)
        while self._cancelled:
            sequence = self._live.get(self._cancelled.pop(0))
            if sequence is not None:
                self._end(sequence, (), sequence.flush(), "cancelled")
        self._kv.poll(self._device.done)

    # ---- decide

    def _decide(self) -> tuple[Run | Wait, int]:
        """The decision for now, and for how many consecutive steps it stands."""
        yielded = self.drafts.yield_blocks()
        self._changed(*self._ranks.make_room(self._kv.free_blocks))
        if self._repeats > 0 and self._groups.residence_unchanged and not yielded:
            return self._decided, self._repeats
        refused, self._repeats = NO_EXPERTS, 0  # the decision below may be to wait
        while True:
            view = self._groups.view(refused)
            decision = self._schedule(view, self.policy)
            if isinstance(decision, Run):
                self._decided = decision
                self._repeats = self._ranks.repeats(self._repeats_of(view, decision, self.policy))
                return decision, self._repeats
            if not isinstance(decision, Fetch):
                return decision, 1
            if not self._start_fetch(decision):
                refused |= {decision.expert_id}

    def _grant(self) -> None:
        """Start an explicitly requested load, if one may start now."""
        if not self._groups.residence_unchanged:
            self._repeats = 0  # the view below consumes the moves, which the next decision must see too
        if (fetch := self.control.next_load(self._groups.view(NO_EXPERTS), self.policy)) is not None:
            self._start_fetch(fetch)

    def _changed(self, *expert_ids: str) -> None:
        """These experts' requests or residence changed since the last decision: do not repeat it."""
        for expert_id in expert_ids:
            self._groups.changed(expert_id)
            self._repeats = 0

    def _start_fetch(self, fetch: Fetch) -> bool:
        """Start a fetch; False if there is no room now. If there can never be, the expert's requests end."""
        if self._loads.would_refuse(fetch.expert_id, fetch.keep, fetch.spare):
            return False
        self.before_load(fetch.expert_id)
        if self._recording is not None:
            self._recording.about(fetch.expert_id, "fetch", self._experts[fetch.expert_id].layout)
        # Without overlap nothing runs before the whole expert is there, so no row is needed early.
        max_sequences = self.policy.max_batch if self.policy.overlap else 0
        rows = self.queue.next_tokens(fetch.expert_id, max_sequences, MAX_ROWS)
        try:
            residency = self._loads.start(fetch.expert_id, fetch.keep, fetch.spare, rows)
        except CoterieError as error:
            self.log.add("refuse", fetch.expert_id)
            self.control.refuse(fetch.expert_id, error)
            self.fail(self.queue.of(fetch.expert_id), error)
            return True
        if residency is None:
            return False
        if not residency.hit:  # on a hit another caller had started the load
            self.log.add_fetch(fetch.expert_id, residency.evicted)
            self.metrics.count_switch(fetch.expert_id, self._experts[fetch.expert_id].layout.size_bytes)
        self._groups.new_turn(fetch.expert_id)
        self._changed(fetch.expert_id)
        return True

    # ---- run

    def _batch(self, run: Run, repeats: int) -> Batch:
        expert, queue = self._experts[run.expert_id], self.queue
        if run.admit:
            admitted = queue.waiting_numbers(run.admit)
            for sequence in admitted:
                self._admit(sequence)
            self._loads.touch(Counter([sequence.request.expert_id for sequence in admitted]))
        max_steps = self._batcher.max_steps_of(expert)
        running = queue.running_of((run.expert_id, *run.partners))
        alone = not (queue.waiting or len(queue.running) > len(running) or self._loads.under_way)
        if not alone:
            max_steps = min(max_steps, repeats) if self.policy.multi_step_while_waiting else 1
        if run.partners:
            return self._batcher.mixed([self._experts[name] for name in running], running, max_steps, self.reuse.begin)
        self.reuse.begin(expert, running[run.expert_id])
        drafts = self.drafts if alone and self.drafts.ready(expert, self._start_fetch) else None
        return self._batcher.next(expert, running[run.expert_id], max_steps, drafts)

    def _admit(self, sequence: Sequence) -> None:
        self.reuse.admit(self._experts[sequence.request.expert_id], sequence)
        self.queue.admit(sequence)
        self._changed(sequence.request.expert_id)
        self._batcher.changed(sequence.request.expert_id)
        if sequence.scheduled_s is None:
            sequence.scheduled_s = self._device.now()
            sequence.load = self._loads.latest.get(sequence.request.expert_id)
            self.metrics.count_admitted(sequence.request, sequence.overtaken, sequence.scheduled_s - sequence.arrival_s)
        self.log.add("admit", sequence.request.request_id)

    # ---- account

    def _account(self, lead: str, names: tuple[str, ...], batch: Batch, event: Event) -> None:
        failure = self._device.failure(event)
        if failure is not None:
            self._count_steps(lead, names, batch, 1)
            if len(names) > 1 and not self._experts[lead].kv.recurrent:  # else the step cannot be done again
                self._groups.isolate(names)
                self._repeats = 0
                return
            self.fail([part.sequence for part in batch.parts], failure)
            self._loads.wait_out(names[0])
            self._settle()
            return
        steps = len(drawn := self._device.tokens(event))
        self._count_steps(lead, names, batch, steps)
        self._groups.rejoin(names)
        for part in batch.parts:
            part.sequence.computed += part.count + steps - 1
        if batch.gives_vectors:
            for sequence, error in take_vectors(self._device, event, batch):
                self._end(sequence, (), "", "stop" if error is None else "error", error)
            return
        by_row = drawn.T.tolist()
        failed = choose_rows(self._device, event, batch, by_row)
        self.metrics.count_guesses(*keep_guesses(batch, by_row), batch.drafted)
        failed |= drawn_again(batch.sampled, by_row)
        for row, sequence in enumerate(batch.sampled):
            if row not in failed:
                self._take(sequence, by_row[row])
        for row, error in failed.items():
            self.fail([batch.sampled[row]], error)

    def _count_steps(self, lead: str, names: tuple[str, ...], batch: Batch, steps: int) -> None:
        self.log.add_steps(steps, ("run", names[0], len(batch.rows.tokens_T), len(batch.rows.rows_R), *names[1:]))
        self.metrics.steps += steps
        self._repeats -= steps
        self._groups.ran(lead, names, steps, self.metrics.steps)
        self._changed(*self._ranks.count_steps(batch.parts, steps))

    def _take(self, sequence: Sequence, tokens: list[int]) -> None:
        if sequence.first_token_s is None:
            sequence.first_token_s = self._device.now()
        count, text, reason = sequence.accept_all(tokens)
        self.metrics.drawn_tokens += count
        if reason is not None:
            self._end(sequence, tuple(tokens[:count]), text, reason)
        else:
            self._outputs.append(sequence.output(tuple(tokens), text))

    def fail(self, sequences: Iterable[Sequence], error: Exception) -> None:
        """End these sequences with an error; call only between steps."""
        for sequence in sequences:
            self._end(sequence, (), sequence.flush(), "error", error)

    def _end(
        self,
        sequence: Sequence,
        tokens: tuple[int, ...],
        text: str,
        reason: FinishReason,
        error: Exception | None = None,
    ) -> None:
        request = sequence.request
        if self.queue.is_running(sequence):
            self.reuse.end(sequence, error is not None)
            self._batcher.changed(request.expert_id)
            self.drafts.ended(sequence)
        if not self.admission.drop(sequence):
            self.queue.drop(sequence)
        self._changed(request.expert_id)
        del self._live[request.request_id]
        if not self.queue.has_work(request.expert_id):
            self._groups.new_turn(request.expert_id)
        ready_s = None if sequence.load is None else sequence.load.completion_s(self._device)
        timings = sequence.timings(self._device.now(), ready_s)
        self.metrics.count_end(request, reason, timings, len(sequence.tokens))
        shown_error = None if error is None else as_error(request.expert_id, error)
        self._outputs.append(sequence.output(tokens, text, reason, shown_error, timings))
        self.log.add("finish", request.request_id, reason)
        if self._recording is not None:
            self._recording.request(request.request_id, request.expert_id, timings)
