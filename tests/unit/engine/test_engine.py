from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from evenflow.core.errors import ContextLengthError, DuplicateRequestError, InvalidRequestError
from evenflow.core.ids import TenantId
from evenflow.core.sampling import SamplingParams
from evenflow.engine.engine import Engine
from evenflow.engine.outputs import CompletionOutput, Delta, RequestMetrics
from evenflow.scheduling.plan import StepPlan, StepResult, TokenLogprobs
from support.preempting import preempt
from support.text_engine import END, EXECUTE_S, make_text_engine, spell, tokenizer

Completions = dict[tuple[str, int], CompletionOutput]


def run(engine: Engine, num_steps: int = 500) -> Completions:
    """Step to the end; nothing may come for a completion that has ended."""
    completions: Completions = {}
    for _ in range(num_steps):
        if not engine.has_work:
            break
        for delta in engine.step():
            key = (delta.request_id, delta.index)
            completion = completions.setdefault(key, CompletionOutput(delta.index))
            assert completion.finish_reason is None, f"{key} went on after its end"
            completion.add(delta)
        engine.scheduler.check_integrity()
    return completions


def complete(reply: Any, **params: Any) -> tuple[CompletionOutput, list[Delta]]:
    """Run one request and return its completion and the deltas it was made of."""
    engine = make_text_engine(lambda _: reply)
    engine.add_request("a", spell("prompt"), SamplingParams(**params))
    completion, deltas = CompletionOutput(0), []
    while engine.has_work:
        for delta in engine.step():
            deltas.append(delta)
            completion.add(delta)
    return completion, deltas


def test_step_streams_text_that_joins_to_the_decoded_tokens() -> None:
    text = "Größe 🎉, naïve 👩‍💻 in 你好"
    completion, deltas = complete(text)
    assert completion.text == text == tokenizer().decode(completion.token_ids)
    assert completion.token_ids[:-1] == spell(text)
    assert "\ufffd" not in "".join(delta.text for delta in deltas)
    assert any(delta.text == "" for delta in deltas[:-1]), "half a character was shown"
    assert [delta.token_id for delta in deltas] == completion.token_ids


def test_step_ends_with_the_held_half_character_when_the_length_is_reached() -> None:
    half = spell("🧿")[:2]
    completion, _ = complete([*spell("ab"), *half, *spell("c")], max_tokens=4)
    assert (completion.text, completion.finish_reason) == ("ab\ufffd", "length")


@pytest.mark.parametrize(("include", "text"), [(False, "so far, so "), (True, "so far, so good.")])
def test_step_cuts_at_a_stop_string_across_tokens(include: bool, text: str) -> None:
    completion, deltas = complete(
        "so far, so good. More.", stop=("good.",), include_stop_str_in_output=include
    )
    assert (completion.text, completion.finish_reason) == (text, "stop")
    assert completion.stop_reason == "good."
    assert len(completion.token_ids) == len("so far, so good.")
    pieces = [delta.text for delta in deltas]
    assert pieces[:11] == list("so far, so ")
    assert pieces[11:15] == [""] * 4, "a possible stop string was shown"


def test_step_shows_withheld_text_once_it_cannot_become_a_stop_string() -> None:
    completion, deltas = complete("a goal", stop=("good.",))
    assert completion.text == "a goal"
    assert [delta.text for delta in deltas] == ["a", " ", "", "", "goa", "l", ""]
    assert completion.finish_reason == "stop"
    assert completion.stop_reason is None


def test_step_shows_withheld_text_when_the_length_is_reached() -> None:
    completion, _ = complete("abc good", stop=("good.",), max_tokens=8)
    assert (completion.text, completion.finish_reason) == ("abc good", "length")


def test_step_stops_at_a_stop_string_in_the_last_allowed_token() -> None:
    completion, _ = complete("abc good", stop=("good",), max_tokens=8)
    assert (completion.text, completion.finish_reason, completion.stop_reason) == (
        "abc ",
        "stop",
        "good",
    )


def test_step_heeds_no_stop_string_before_min_tokens() -> None:
    completion, _ = complete("x.x.x.x.", stop=(".",), min_tokens=5)
    assert completion.text == "x.x.x"
    assert completion.stop_reason == "."
    assert len(completion.token_ids) == 6


def test_step_heeds_a_stop_string_that_begins_before_min_tokens_and_ends_after() -> None:
    completion, _ = complete("xEND and on", stop=("END",), min_tokens=3)
    assert (completion.text, completion.stop_reason) == ("x", "END")


def test_step_stops_at_min_tokens_itself() -> None:
    completion, _ = complete("x.x.x.x.", stop=(".",), min_tokens=4)
    assert (completion.text, len(completion.token_ids)) == ("x.x", 4)


def test_step_hides_the_text_of_a_stop_token_id() -> None:
    (comma,) = spell(",")
    completion, _ = complete("one, two", stop_token_ids=(comma,))
    assert (completion.text, completion.stop_reason) == ("one", comma)
    assert completion.token_ids == spell("one,")
    completion, _ = complete("one, two", stop_token_ids=(comma,), include_stop_str_in_output=True)
    assert completion.text == "one,"


def test_step_shows_special_tokens_when_asked() -> None:
    ids = [*spell("a"), tokenizer().eos_token_id, *spell("b")]
    for skip, text in ((True, "ab"), (False, f"a{END}b")):
        completion, _ = complete(ids, max_tokens=3, ignore_eos=True, skip_special_tokens=skip)
        assert completion.text == text


def test_abort_ends_all_completions_and_frees_their_memory() -> None:
    engine = make_text_engine(lambda _: "long " * 30)
    free = engine.scheduler.kv.stats().num_free
    engine.add_request("a", spell("prompt"), SamplingParams(n=3))
    engine.add_request("b", spell("other"), SamplingParams(max_tokens=8))
    for _ in range(4):
        engine.step()
    assert engine.abort("a")
    engine.scheduler.check_integrity()
    assert list(engine.scheduler.requests) == ["b"]
    completions = run(engine)
    ends = {key: completion.finish_reason for key, completion in completions.items()}
    assert ends == {("a", 0): "abort", ("a", 1): "abort", ("a", 2): "abort", ("b", 0): "length"}
    engine.scheduler.kv.reset_prefix_cache()
    assert engine.scheduler.kv.stats().num_free == free


def test_abort_reports_the_text_that_was_withheld() -> None:
    engine = make_text_engine(lambda _: "abc good.")
    engine.add_request("a", spell("prompt"), SamplingParams(stop=("good.",)))
    shown = [delta.text for _ in range(7) for delta in engine.step()]
    assert "".join(shown) == "abc "
    engine.abort("a")
    (last,) = engine.step()
    assert (last.text, last.token_id, last.finish_reason) == ("goo", None, "abort")
    assert last.metrics is not None
    assert last.metrics.num_output_tokens == 7


def test_abort_of_an_unknown_or_finished_request_does_nothing() -> None:
    engine = make_text_engine(lambda _: "a")
    assert not engine.abort("nobody")
    engine.add_request("a", spell("prompt"), SamplingParams(n=2))
    assert not engine.abort("a#1"), "a completion has no name of its own"
    run(engine)
    assert not engine.abort("a")
    assert not engine.has_work


@pytest.mark.parametrize(
    ("first", "n", "second", "second_n"),
    [("a", 1, "a", 1), ("a", 3, "a#2", 1), ("a#1", 1, "a", 2), ("a", 2, "a", 1)],
)
def test_add_request_refuses_an_id_in_use(first: str, n: int, second: str, second_n: int) -> None:
    engine = make_text_engine(lambda _: "text")
    engine.add_request(first, spell("prompt"), SamplingParams(n=n))
    with pytest.raises(DuplicateRequestError) as caught:
        engine.add_request(second, spell("prompt"), SamplingParams(n=second_n))
    assert caught.value.param == "request_id"
    assert len(run(engine)) == n
    engine.add_request(second, spell("prompt"), SamplingParams(n=second_n))
    assert len(run(engine)) == second_n


def test_add_request_refuses_an_id_of_which_another_completion_lives() -> None:
    engine = make_text_engine(lambda name: "ab" if name == "a" else "long text")
    engine.add_request("a", spell("prompt"), SamplingParams(n=2))
    while "a" in engine.scheduler.requests:
        engine.step()
    assert list(engine.scheduler.requests) == ["a#1"]
    with pytest.raises(DuplicateRequestError):
        engine.add_request("a", spell("prompt"), SamplingParams())
    assert engine.abort("a")
    assert run(engine).keys() == {("a", 1)}


def test_engine_forgets_all_about_requests_that_have_ended() -> None:
    engine = make_text_engine(lambda _: "some text")
    engine.sessions.open(TenantId("default"), 60.0, "talk")
    for name, n in (("a", 3), ("b", 1), ("c", 2)):
        params = SamplingParams(n=n)
        engine.add_request(name, spell("prompt"), params, deadline_s=105.0, session_id="talk")
    engine.step()
    engine.abort("b")
    engine._executor.failing.add("c")
    run(engine)
    scheduler = engine.scheduler
    waits = scheduler._waits
    for state in (engine._completions, engine._session_of):
        assert not state
    for state in (scheduler.kv._prefixes, scheduler._siblings._held, waits.queued_ids):
        assert not state


def test_add_request_refuses_an_id_whose_end_is_not_reported_yet() -> None:
    engine = make_text_engine(lambda _: "text")
    engine.add_request("a", spell("prompt"), SamplingParams())
    engine.abort("a")
    with pytest.raises(DuplicateRequestError):
        engine.add_request("a", spell("prompt"), SamplingParams())
    run(engine)
    engine.add_request("a", spell("prompt"), SamplingParams())


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ([], {}, "prompt"),
        ([1, -1], {}, "prompt"),
        ([1, 10_000], {}, "prompt"),
        ([1], {"stop_token_ids": (10_000,)}, "stop_token_ids"),
        ([1], {"logit_bias": {10_000: 1.0}}, "logit_bias"),
    ],
)
def test_add_request_names_the_param_of_a_bad_value(
    prompt: list[int], params: dict[str, Any], param: str
) -> None:
    engine = make_text_engine(lambda _: "text")
    with pytest.raises(InvalidRequestError) as caught:
        engine.add_request("a", prompt, SamplingParams(**params))
    assert caught.value.param == param
    assert not engine.has_work


def test_add_request_refuses_a_prompt_that_can_never_fit_with_the_numbers() -> None:
    engine = make_text_engine(lambda _: "text", max_model_len=20)
    with pytest.raises(ContextLengthError, match=r"has 20 tokens.*may have 20.*--max-model-len"):
        engine.add_request("a", [1] * 20, SamplingParams())
    engine.add_request("a", [1] * 19, SamplingParams())
    completion = run(engine)["a", 0]
    assert (len(completion.token_ids), completion.finish_reason) == (1, "length")


def test_add_request_gives_each_completion_a_random_stream_of_its_own() -> None:
    engine = make_text_engine(lambda _: "text")
    engine.add_request("a", spell("p"), SamplingParams(n=4, seed=7))
    engine.add_request("b", spell("p"), SamplingParams(n=4))
    engine.add_request("c", spell("p"), SamplingParams(seed=7))
    seeds = defaultdict(list)
    for request in engine.scheduler.requests.values():
        seeds[request.request_id[0]].append(request.seed)
    assert len(set(seeds["a"])) == len(set(seeds["b"])) == 4
    assert seeds["a"][0] == seeds["c"][0] == 7


def test_metrics_follow_their_formulas() -> None:
    engine = make_text_engine(lambda _: "abcdef")
    engine.add_request("a", [1] * 100, SamplingParams(max_tokens=5))  # two steps of prefill
    metrics = run(engine)["a", 0].metrics
    assert metrics is not None
    assert metrics.arrival_s == 100.0
    assert metrics.ttft_s == 2 * EXECUTE_S
    assert metrics.tpot_s == EXECUTE_S
    assert metrics.finished_s == 100.0 + 6 * EXECUTE_S
    assert (metrics.num_output_tokens, metrics.num_preemptions) == (5, 0)


def test_metrics_have_no_latency_of_tokens_that_never_came() -> None:
    assert RequestMetrics(1.0, None, 9.0, 0, 0, 0).ttft_s is None
    assert RequestMetrics(1.0, None, 9.0, 0, 0, 0).tpot_s is None
    assert RequestMetrics(1.0, 3.0, 3.0, 1, 0, 0).tpot_s is None
    assert RequestMetrics(1.0, 3.0, 9.0, 4, 0, 0).tpot_s == 2.0


def test_failure_of_one_request_leaves_the_others_untouched() -> None:
    engine = make_text_engine(lambda name: f"text of {name}")
    for name in ("a", "b", "c"):
        engine.add_request(name, spell("prompt"), SamplingParams())
    for _ in range(3):
        engine.step()
    engine._executor.failing.add("b")
    rest = run(engine)
    assert {key: c.finish_reason for key, c in rest.items()} == {
        ("a", 0): "stop",
        ("b", 0): "error",
        ("c", 0): "stop",
    }
    assert rest["b", 0].error == "the test says so"
    assert (rest["a", 0].text, rest["c", 0].text) == ("t of a", "t of c")


def test_failure_of_a_parent_leaves_its_siblings_to_finish() -> None:
    engine = make_text_engine(lambda name: f"text of {name}")
    engine.add_request("a", spell("prompt"), SamplingParams(n=3))
    engine._executor.failing.add("a")
    completions = run(engine)
    assert completions["a", 0].finish_reason == "error"
    assert [completions["a", i].text for i in (1, 2)] == ["text of a#1", "text of a#2"]


@pytest.mark.parametrize(("salted", "num_cached"), [(True, 0), (False, 8)])
def test_prefix_cache_is_shared_by_tenants_unless_salted(salted: bool, num_cached: int) -> None:
    engine = make_text_engine(lambda _: "text", salt_per_tenant=salted)
    for tenant, expected in (("x", 0), ("y", num_cached), ("x", 8)):
        engine.add_request("a", [5] * 9, SamplingParams(), tenant_id=TenantId(tenant))
        metrics = run(engine)["a", 0].metrics
        assert metrics is not None
        assert metrics.num_cached_tokens == expected


def test_prefix_cache_is_not_shared_across_salts_of_the_caller() -> None:
    engine = make_text_engine(lambda _: "text")
    for salt, expected in (("p", 0), ("q", 0), ("p", 8)):
        engine.add_request("a", [5] * 9, SamplingParams(), cache_salt=salt)
        metrics = run(engine)["a", 0].metrics
        assert metrics is not None
        assert metrics.num_cached_tokens == expected


def score_prompts(engine: Engine) -> None:
    """Make the executor score prompt tokens, each by its own id."""
    execute = engine._executor.execute

    def execute_and_score(plan: StepPlan) -> StepResult:
        result = execute(plan)
        for index, (request, count) in enumerate(
            zip(plan.requests, plan.num_new_tokens, strict=True)
        ):
            first = request.num_computed_tokens + 1
            predicted = request.token_ids[first : min(first + count, request.num_prompt_tokens)]
            if predicted:
                result.prompt_logprobs[index] = [TokenLogprobs(t, -1.0, 1, ()) for t in predicted]
        return result

    engine._executor.execute = execute_and_score


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 150])
def test_prompt_logprobs_come_whole_and_once_with_the_first_token(length: int) -> None:
    engine = make_text_engine(lambda _: "abc")
    score_prompts(engine)
    prompt = [token % 100 for token in range(length)]
    engine.add_request("a", prompt, SamplingParams(prompt_logprobs=0))
    deltas = []
    while engine.has_work:
        deltas += engine.step()
        if len(deltas) == 2:  # recomputing the prompt scores it again
            preempt(engine.scheduler, engine.scheduler.requests["a"])
    assert [entry.token_id for entry in deltas[0].prompt_logprobs or ()] == prompt[1:]
    assert [delta.prompt_logprobs is None for delta in deltas] == [False, True, True, True]


def test_step_times_add_up_over_the_steps_that_compute() -> None:
    engine = make_text_engine(lambda _: "abc")
    engine.add_request("a", spell("prompt"), SamplingParams())
    run(engine)
    assert engine.times.num_steps == 4
    assert engine.times.execute_s == 4 * EXECUTE_S
    assert (engine.times.schedule_s, engine.times.update_s, engine.times.emit_s) == (0, 0, 0)
    assert engine.step() == []
    assert engine.times.num_steps == 4


@pytest.mark.parametrize("prompt", [[1.5], ["x"], [True], [None]])
def test_add_request_refuses_a_prompt_of_something_else_than_token_ids(prompt: list) -> None:
    engine = make_text_engine(lambda _: "")
    with pytest.raises(InvalidRequestError) as caught:
        engine.add_request("a", prompt, SamplingParams())
    assert caught.value.param == "prompt"
    assert not engine.has_work


def test_step_reports_an_abort_as_abort_when_the_rest_holds_a_stop_string() -> None:
    engine = make_text_engine(lambda _: "abcdef")
    engine.add_request("a", spell("x"), SamplingParams(stop=("b", "bcx")))
    engine.step()
    engine.abort("a")
    assert [delta.finish_reason for delta in engine.step()] == ["abort"]
