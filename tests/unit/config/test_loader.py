from __future__ import annotations

from pathlib import Path

import pytest

from evenflow.config import AREAS, Layer, Origin, load_config, options_of
from evenflow.core.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def failure(**arguments: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(**{"environ": {}} | arguments)  # type: ignore[arg-type]
    return caught.value


def test_load_gives_defaults_with_their_origin_when_nothing_is_set() -> None:
    loaded = load_config(environ={"HOME": "/somewhere"})
    assert loaded.config.scheduler.max_num_seqs == 128
    assert set(loaded.origins) == {option.name for option in options_of(*AREAS)}
    assert {str(origin) for origin in loaded.origins.values()} == {"default"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "[scheduler]\nmax_num_seqs = 8\n[model]\noffline = true\n"),
        ("a.yaml", "scheduler:\n  max_num_seqs: 8\nmodel:\n  offline: true\n"),
    ],
)
def test_load_reads_tables_of_a_file(tmp_path: Path, name: str, text: str) -> None:
    file = write(tmp_path / name, text)
    loaded = load_config(file=file, environ={})
    assert loaded.config.scheduler.max_num_seqs == 8
    assert loaded.config.model.offline is True
    assert loaded.origins["max_num_seqs"] == Origin(Layer.FILE, str(file))


def test_load_accepts_an_empty_yaml_file(tmp_path: Path) -> None:
    assert load_config(file=write(tmp_path / "a.yml", ""), environ={}).config.model.model


def test_load_finds_the_file_by_variable(tmp_path: Path) -> None:
    file = write(tmp_path / "a.toml", "[scheduler]\nmax_num_seqs = 8\n")
    loaded = load_config(environ={"EVENFLOW_CONFIG": str(file)})
    assert loaded.config.scheduler.max_num_seqs == 8


def test_load_prefers_the_given_file_to_the_variable(tmp_path: Path) -> None:
    given = write(tmp_path / "given.toml", "[scheduler]\nmax_num_seqs = 8\n")
    other = write(tmp_path / "other.toml", "[scheduler]\nmax_num_seqs = 9\n")
    loaded = load_config(file=given, environ={"EVENFLOW_CONFIG": str(other)})
    assert loaded.config.scheduler.max_num_seqs == 8


def test_load_reads_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENFLOW_MAX_NUM_SEQS", "8")
    assert load_config().config.scheduler.max_num_seqs == 8


def test_load_takes_evenflow_cache_as_the_cache_folder(tmp_path: Path) -> None:
    loaded = load_config(environ={"EVENFLOW_CACHE": str(tmp_path)})
    assert loaded.config.paths.cache == tmp_path


def test_load_expands_the_home_folder() -> None:
    assert load_config({"cache": "~/x"}, environ={}).config.paths.cache == Path.home() / "x"


def test_load_takes_back_a_lower_layer_with_none() -> None:
    loaded = load_config({"max_model_len": "none"}, environ={"EVENFLOW_MAX_MODEL_LEN": "100"})
    assert loaded.config.model.max_model_len is None
    assert loaded.origins["max_model_len"].layer is Layer.FLAG


def test_load_reads_truth_values_of_text() -> None:
    assert load_config(environ={"EVENFLOW_OFFLINE": "yes"}).config.model.offline is True
    assert load_config(environ={"EVENFLOW_OFFLINE": "0"}).config.model.offline is False


def test_load_names_variable_value_and_limits_when_a_value_is_wrong() -> None:
    error = failure(environ={"EVENFLOW_MAX_NUM_SEQS": "abc"})
    assert error.what == "max_num_seqs must be a whole number, at least 1"
    assert error.why == "the environment says EVENFLOW_MAX_NUM_SEQS=abc"
    assert error.fix == "max_num_seqs is 128 by default"


def test_load_names_the_flag_when_a_value_is_wrong() -> None:
    error = failure(flags={"linear": "fast"})
    assert error.what == "linear must be one of auto, exact, w4a8, w8a8"
    assert error.why == "a flag says --linear=fast"


def test_load_names_the_file_when_a_value_is_wrong(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "scheduler:\n  max_num_seqs: yes\n")
    assert failure(file=file).why == f"the file {file} says max_num_seqs = True"


def test_load_reports_all_wrong_values_of_an_area() -> None:
    error = failure(flags={"max_num_seqs": "0", "max_num_batched_tokens": "x"})
    assert "--max-num-seqs=0" in error.why
    assert "--max-num-batched-tokens=x" in error.why


def test_load_says_who_set_values_that_contradict_each_other() -> None:
    error = failure(environ={"EVENFLOW_MAX_NUM_SEQS": "300"})
    assert "(256) must exceed max_num_seqs (300)" in error.what
    assert "EVENFLOW_MAX_NUM_SEQS=300" in error.why


def test_load_refuses_an_unknown_variable_with_the_close_name() -> None:
    error = failure(environ={"EVENFLOW_MAX_NUM_SEQ": "8"})
    assert "EVENFLOW_MAX_NUM_SEQ" in error.what
    assert "EVENFLOW_MAX_NUM_SEQS" in error.fix


def test_load_points_to_the_list_when_no_name_is_close() -> None:
    assert "evenflow config show" in failure(flags={"zzz": 1}).fix


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("[scheduler]\nmax_num_seq = 8", "no setting max_num_seq", "max_num_seqs"),
        ("[schedule]\nmax_num_seqs = 8", "no table schedule", "scheduler"),
        ("[cache]\nmax_num_seqs = 8", "wrong table", "Move it to scheduler"),
        ("max_num_seqs = 8", "outside its table", "--max-num-seqs"),
        ("model = 'smollm2'", "outside its table", "--model"),
        ("scheduler = 8", "must be a table", ""),
    ],
)
def test_load_refuses_a_file_with_a_misplaced_key(
    tmp_path: Path, text: str, what: str, fix: str
) -> None:
    error = failure(file=write(tmp_path / "a.toml", text))
    assert what in error.what
    assert fix in error.fix


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", b"a = ?", "line 1"),
        ("a.yaml", b"a: [", "line 1"),
        ("a.yaml", b"\xff\xfe\xff", "decode"),
        ("a.yaml", b"- a", "must hold tables"),
        ("a.json", b"{}", "Use .toml, .yaml or .yml"),
    ],
)
def test_load_refuses_a_file_it_cannot_read(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    assert message in str(failure(file=file))


def test_load_refuses_a_file_that_does_not_exist(tmp_path: Path) -> None:
    assert "No such file" in failure(file=tmp_path / "a.toml").why
