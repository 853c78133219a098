"""Settings: typed wherever they come from, errors that name the place, and what a session keeps of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import cloudtask.settings_sources as sources
from cloudtask import kinds
from cloudtask.errors import SettingError, UsageError
from cloudtask.kinds import CommandWords
from cloudtask.model import Address, Halt
from cloudtask.settings import BUILT_IN, GROUPS, Row, Settings, get
from cloudtask.settings_checks import check


def from_environment(**environ: str) -> sources.Values:
    layer, warnings = sources.environment_layer(BUILT_IN, environ, "/")
    assert not warnings
    return sources.resolve(BUILT_IN, [layer], environ)


def from_template(**attributes: object) -> Settings:
    return sources.resolve(BUILT_IN, [sources.template_layer(BUILT_IN, attributes, "/")], {}).settings


def from_options(**values: object) -> sources.Values:
    return sources.resolve(BUILT_IN, [sources.command_line_layer(values, "/")], {"TOKEN": "x=y"})


def error_of(**values: object) -> str:
    with pytest.raises(SettingError) as caught:
        from_options(**values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the table -------------------------------------------------------------------------------------------------------


def test_every_setting_has_a_row_with_a_help_text() -> None:
    fields = set(Settings.__dataclass_fields__) - {"extra"}
    assert {row.name for row in BUILT_IN} == fields
    assert all(row.help and row.group in GROUPS and bool(row.metavar) != row.is_flag for row in BUILT_IN)


def test_one_row_names_everything() -> None:
    row = BUILT_IN.find("lost_timeout")
    assert row
    assert (row.option, row.attribute, row.variable, row.key) == (
        "--lost-timeout",
        "LOST_TIMEOUT",
        "CLOUDTASK_LOST_TIMEOUT",
        "lost-timeout",
    )


def test_defaults() -> None:
    settings = from_options().settings
    assert settings.timeout == 3600 and settings.lost_timeout == 300 and settings.max_output == 1 << 30
    assert settings.workers == () and settings.split is None and settings.slots is None and settings.halt is None
    assert settings.sessions == str(Path("~/.cloudtask").expanduser())


def test_a_plug_in_brings_its_rows() -> None:
    row = Row(name="moon_phase", parse=kinds.whole(0), default=7, help="phase", metavar="N", group="Moon")
    table = BUILT_IN.extended([row])
    layer, warnings = sources.environment_layer(table, {"CLOUDTASK_MOON_PHASE": "3"}, "/")
    values = sources.resolve(table, [layer], {})
    assert values.settings.extra == {"moon_phase": 3} and get(values.settings, row) == 3 and not warnings
    assert sources.saved(table, values.settings)["moon-phase"] == 3
    assert sources.resolve(table, [], {}).settings.extra == {"moon_phase": 7}
    with pytest.raises(ValueError, match="moon_phase"):
        table.extended([row])


# --- every value has its type, wherever it comes from ----------------------------------------------------------------

TYPED = [
    ("split", "2", 2),
    ("timeout", "15m", 900.0),
    ("timeout", "0", 0.0),
    ("retries", "3", 3),
    ("slots", "auto", 0),
    ("slots", "4", 4),
    ("max_output", "2K", 2048),
    ("tag", "yes", True),
    ("tag", "0", False),
    ("keep_order", "TRUE", True),
    ("halt", "now,fail=3", Halt(now=True, count=3)),
    ("halt", "soon,fail=10%", Halt(now=False, percent=10.0)),
    ("halt", "never", None),
    ("workers", "4/u@h:22 local", (Address(host="h", user="u", port=22, slots=4), Address(host="local", local=True))),
    ("env", "A=b=c", ("A=b=c",)),
    ("report", "sh: echo done", ("sh: echo done",)),
    ("backup_id", "12", 12),
    ("pre", "apt-get update", "apt-get update"),
    ("input", "nul", "nul"),
    ("overlay", "/tmp", "/tmp"),
]


@pytest.mark.parametrize(("name", "text", "expected"), TYPED)
def test_text_becomes_its_type_from_every_source(name: str, text: str, expected: object, tmp_path: Path) -> None:
    row = BUILT_IN.find(name)
    assert row
    config = tmp_path / "config.yaml"
    config.write_text(f"{row.key}: '{text}'\n")
    found = {
        "command line": from_options(**{name: text}).settings,
        "template": from_template(**{row.attribute: text}),
        "environment": from_environment(**{row.variable: text}).settings,
        "config file": sources.resolve(BUILT_IN, [sources.config_layer(BUILT_IN, str(config))], {}).settings,
    }
    for source, settings in found.items():
        value = get(settings, row)
        assert value == expected and type(value) is type(expected), source


@pytest.mark.parametrize(
    ("attribute", "value", "expected"),
    [
        ("SPLIT", 2, 2),
        ("TIMEOUT", 90, 90.0),
        ("TIMEOUT", 1.5, 1.5),
        ("KEEP_ORDER", True, True),
        ("WORKERS", ["a", "2/b"], (Address(host="a"), Address(host="b", slots=2))),
        ("ENV", {"A": "b", "N": 3}, ("A=b", "N=3")),
        ("ENV", ["A=b", "C=d"], ("A=b", "C=d")),
        ("REPORT", ["sh: x", "mail: a@b.org c-d+e@f-g.org"], ("sh: x", "mail: a@b.org c-d+e@f-g.org")),
        ("AMI_ID", "ami-1", "ami-1"),
        ("OVERLAY", Path("/tmp"), "/tmp"),
        ("COMMAND", "echo hello", CommandWords(words=("echo hello",), code=True)),
        ("COMMAND", ["echo", "a b"], CommandWords(words=("echo", "a b"), code=False)),
        ("SPLIT", None, None),
        ("HALT", False, None),
    ],
)
def test_python_values_of_templates(attribute: str, value: object, expected: object) -> None:
    settings = from_template(**{attribute: value})
    assert getattr(settings, attribute.lower()) == expected


def test_yaml_values(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("split: 3\ntimeout: 90\ntag: yes\nworkers: [a, b]\nenv: {A: b}\nhub-apikey:\n")
    settings = sources.resolve(BUILT_IN, [sources.config_layer(BUILT_IN, str(config))], {}).settings
    assert (settings.split, settings.timeout, settings.tag, settings.env, settings.hub_apikey) == (3, 90.0, True, ("A=b",), None)
    assert settings.workers == (Address(host="a"), Address(host="b"))


# --- order -----------------------------------------------------------------------------------------------------------


def test_order_of_sources(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("split: 4\nretries: 4\nstrikes: 4\nslots: 4\n")
    environment, _ = sources.environment_layer(BUILT_IN, {"CLOUDTASK_SPLIT": "3", "CLOUDTASK_RETRIES": "3", "CLOUDTASK_STRIKES": "3"}, "/")
    layers = [
        sources.command_line_layer({"split": "1"}, "/"),
        sources.template_layer(BUILT_IN, {"SPLIT": 2, "RETRIES": 2, "STRIKES": None}, "/"),
        environment,
        sources.config_layer(BUILT_IN, str(config)),
    ]
    values = sources.resolve(BUILT_IN, layers, {})
    assert (values.settings.split, values.settings.retries, values.settings.strikes, values.settings.slots) == (1, 2, 3, 4)
    assert [values.sources[key] for key in ("split", "retries", "strikes", "slots", "lease")] == [
        "command line", "template", "environment", "config file", "default",
    ]  # fmt: skip


def test_an_empty_variable_is_not_set_but_no_workers_are_an_error() -> None:
    assert from_environment(CLOUDTASK_TIMEOUT="", CLOUDTASK_PRE="").settings == from_options().settings
    with pytest.raises(SettingError, match=r"^CLOUDTASK_WORKERS=: names no worker"):
        from_environment(CLOUDTASK_WORKERS="")
    assert "names no worker" in error_of(workers="")


def test_an_empty_option_takes_back_a_text() -> None:
    layers = [sources.command_line_layer({"pre": "", "env": ()}, "/"), sources.template_layer(BUILT_IN, {"PRE": "x", "ENV": ["A=b"]}, "/")]
    settings = sources.resolve(BUILT_IN, layers, {}).settings
    assert settings.pre is None and settings.env == ()


def test_hub_apikey_from_the_hubs_own_variable() -> None:
    assert from_environment(HUB_APIKEY="K").settings.hub_apikey == "K"
    assert from_environment(HUB_APIKEY="K", CLOUDTASK_HUB_APIKEY="L").settings.hub_apikey == "L"
    assert from_environment(HUB_APIKEY="").settings.hub_apikey is None


def test_relative_paths_count_from_where_they_stand(tmp_path: Path) -> None:
    for name in ("here", "template", "config"):
        (tmp_path / name / "overlay").mkdir(parents=True)
    (tmp_path / "config" / "config.yaml").write_text("overlay: overlay\n")
    command_line = sources.command_line_layer({"overlay": "overlay"}, str(tmp_path / "here"))
    template = sources.template_layer(BUILT_IN, {"OVERLAY": "overlay/", "SESSIONS": "sessions/"}, str(tmp_path / "template"))
    config = sources.config_layer(BUILT_IN, str(tmp_path / "config" / "config.yaml"))
    for layers, folder in (([command_line, template], "here"), ([template, config], "template"), ([config], "config")):
        assert sources.resolve(BUILT_IN, layers, {}).settings.overlay == str(tmp_path / folder / "overlay")
    assert sources.resolve(BUILT_IN, [template], {}).settings.sessions == str(tmp_path / "template" / "sessions")


# --- errors name the place -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("split", "0", "^--split=0: .*from 1"),
        ("split", "x", "^--split=x: "),
        ("retries", "-1", "^--retries=-1: "),
        ("timeout", "x", "^--timeout=x: .*not a duration"),
        ("timeout", "-5", "not a duration"),
        ("lease", "0", "longer than 0"),
        ("max_output", "1Q", "^--max-output=1Q: .*not a size"),
        ("slots", "0", "auto"),
        ("tag", "perhaps", "neither yes nor no"),
        ("halt", "now", "halt policy"),
        ("halt", "now,fail=0", "1 or more"),
        ("halt", "soon,fail=101%", "100%"),
        ("output", "all", "group, line, none"),
        ("ssh_identity", "/no/such/key", "no file /no/such/key"),
        ("overlay", "/no/such/overlay", "no directory /no/such/overlay"),
        ("overlay", "/etc/passwd", "no directory"),
        ("env", ("1A=b",), "no name of a variable"),
        ("env", ("NOT_THERE_AT_ALL",), "NOT_THERE_AT_ALL is not set"),
        ("env", ("CLOUDTASK_JOB=1",), "CLOUDTASK_JOB"),
        ("user", "-l", "'-'"),
        ("user", "a b", "one word"),
        ("report", ("xx: y",), r"no 'xx' in the supported reporting handlers \(mail, sh, py, http\)"),
        ("report", ("no colon",), "supported"),
        ("report", ("sh:",), "nothing after"),
        ("report", ("mail: a@b.org",), "recipients"),
        ("report", ("mail: a@b.org nobody",), "'nobody' is no e-mail address"),
        ("report", ("py: not ) code",), "neither an existing file nor Python code"),
        ("report", ("py: /no/such/hook.py",), "no file /no/such/hook.py"),
        ("report", ("http: ftp://x",), "http://"),
        ("workers", "-o", "'-o'"),
        ("command", [""], "^the command: is empty"),
    ],
)
def test_errors_name_the_option_and_what_is_wrong(name: str, value: object, words: str) -> None:
    assert re.search(words, error_of(**{name: value}))


def test_errors_name_the_variable_the_attribute_or_the_file(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^CLOUDTASK_TIMEOUT=x: .*not a duration"):
        from_environment(CLOUDTASK_TIMEOUT="x")
    with pytest.raises(SettingError, match=r"^template attribute SPLIT = 'x': "):
        from_template(SPLIT="x")
    with pytest.raises(SettingError, match=r"^template attribute SPLIT = True: "):
        from_template(SPLIT=True)
    config = tmp_path / "config.yaml"
    config.write_text("split: 1.5\n")
    with pytest.raises(SettingError, match=f"^{config}: split: 1.5: "):
        sources.resolve(BUILT_IN, [sources.config_layer(BUILT_IN, str(config))], {})


def test_secrets_are_not_in_errors() -> None:
    for layer in (
        sources.command_line_layer({"hub_apikey": "SE\0CRET"}, "/"),
        sources.template_layer(BUILT_IN, {"HUB_APIKEY": "SE\0CRET"}, "/"),
        sources.environment_layer(BUILT_IN, {"CLOUDTASK_HUB_APIKEY": "SE\0CRET"}, "/")[0],
    ):
        with pytest.raises(SettingError) as caught:
            sources.resolve(BUILT_IN, [layer], {})
        assert "CRET" not in str(caught.value)


def test_unknown_names_come_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"template attribute TIMEOT: .*did you mean TIMEOUT"):
        from_template(TIMEOT=3)
    config = tmp_path / "config.yaml"
    config.write_text("time-out: 3\n")
    with pytest.raises(UsageError, match=f"{config}: key 'time-out' .*did you mean timeout"):
        sources.config_layer(BUILT_IN, str(config))
    _, warnings = sources.environment_layer(BUILT_IN, {"CLOUDTASK_RETRY": "3"}, "/")
    assert len(warnings) == 1 and "CLOUDTASK_RETRY " in warnings[0] and "did you mean CLOUDTASK_RETRIES" in warnings[0]


def test_what_a_job_finds_in_its_environment_is_no_reason_to_warn() -> None:
    environ = {f"CLOUDTASK_{name}": "1" for name in ("SESSION", "JOB", "ATTEMPT", "WORKER", "SLOT", "SMTP")}
    assert from_environment(**environ).settings == from_options().settings


@pytest.mark.parametrize(
    ("text", "words"), [("split: [", "line 2: not YAML"), ("- a\n", "setting: value"), ("1: 2\n", "key 1 is no setting")]
)
def test_a_bad_configuration_file_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text + "\n")
    with pytest.raises(UsageError, match=words) as caught:
        sources.config_layer(BUILT_IN, str(config))
    assert str(caught.value).startswith(str(config)) and "\n" not in str(caught.value)


def test_place_of_the_configuration_file() -> None:
    assert sources.config_path({"XDG_CONFIG_HOME": "/etc/me"}) == "/etc/me/cloudtask/config.yaml"
    assert (
        sources.config_path({"XDG_CONFIG_HOME": "relative"})
        == sources.config_path({})
        == str(Path("~/.config/cloudtask/config.yaml").expanduser())
    )


def test_a_bare_variable_keeps_its_value_to_itself() -> None:
    assert from_options(env=("TOKEN", "B=")).settings.env == ("TOKEN", "B=")


# --- settings that do not go together --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"at_most_once": True, "retries": "1"}, "--at-most-once and --retries=1 exclude"),
        ({"keep_order": True, "output": "line"}, "--keep-order and --output=line exclude"),
        ({"ami_id": "a", "snapshot_id": "b"}, "--ami-id and --snapshot-id exclude"),
        ({"lease": "10s", "heartbeat": "15s"}, "--lease=10s must be longer than --heartbeat=15s"),
    ],
)
def test_settings_that_exclude_each_other(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        check(from_options(**values))


def test_the_check_names_the_source() -> None:
    layers = [sources.command_line_layer({"at_most_once": True}, "/"), sources.template_layer(BUILT_IN, {"RETRIES": 2}, "/")]
    with pytest.raises(SettingError, match=r"--retries=2 \(from the template\)"):
        check(sources.resolve(BUILT_IN, layers, {}))


# --- what a session keeps --------------------------------------------------------------------------------------------


def test_saved_settings_come_back(tmp_path: Path) -> None:
    import yaml

    given = {name: text for name, text, _ in TYPED if (name, text) not in (("tag", "0"), ("timeout", "0"), ("slots", "4"))}
    values = from_options(**given, command={"code": "echo x", "words": ["a b"]})
    saved = yaml.safe_load(yaml.safe_dump(sources.saved(BUILT_IN, values.settings)))
    layer = sources.saved_layer(BUILT_IN, saved, values.sources, str(tmp_path / "conf.yaml"))
    again = sources.resolve_again(BUILT_IN, [sources.command_line_layer({}, "/")], layer, {})
    assert again.settings == values.settings
    assert again.sources["split"] == "command line"


def test_default_settings_come_back() -> None:
    values = from_options()
    layer = sources.saved_layer(BUILT_IN, sources.saved(BUILT_IN, values.settings), values.sources, "conf.yaml")
    assert sources.resolve_again(BUILT_IN, [sources.command_line_layer({}, "/")], layer, {}) == values


def test_what_is_not_saved() -> None:
    values = from_options(hub_apikey="K", force=True, confirm=True, quiet=True, sessions="/s", retries="1")
    saved = sources.saved(BUILT_IN, values.settings)
    assert saved["retries"] == 1
    assert not saved.keys() & {"hub-apikey", "force", "confirm", "quiet", "sessions"}


def test_a_resume_asks_the_command_line_and_then_the_session() -> None:
    layers = [
        sources.command_line_layer({"retries": "7"}, "/"),
        sources.template_layer(
            BUILT_IN, {"RETRIES": 2, "STRIKES": 2, "FORCE": True, "QUIET": True, "HUB_APIKEY": "K", "SESSIONS": "/s"}, "/"
        ),
        sources.environment_layer(BUILT_IN, {"CLOUDTASK_SPLIT": "9"}, "/")[0],
    ]
    saved = sources.saved_layer(BUILT_IN, {"retries": 1, "strikes": 1}, {"strikes": "environment"}, "conf.yaml")
    values = sources.resolve_again(BUILT_IN, layers, saved, {})
    settings = values.settings
    assert (settings.retries, settings.strikes, settings.split) == (7, 1, None)
    assert (settings.hub_apikey, settings.sessions, settings.quiet, settings.force) == ("K", "/s", True, False)
    assert (values.sources["retries"], values.sources["strikes"], values.sources["split"]) == ("command line", "environment", "default")
