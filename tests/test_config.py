"""Settings: where their values come from, and what is wrong with them."""

import os

import pytest

from aloop.config import Configuration, config
from aloop.errors import ConfigurationError

SETTINGS = [
    "log_backend",
    "sqlite_database",
    "max_blob_size",
    "profile",
    "default_seed",
    "stall_warning_s",
    "temp_dir",
]


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """An empty home and an environment without settings."""
    for variable in [name for name in os.environ if name.startswith("ALOOP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


@pytest.fixture
def settings():
    """Settings of their own, one of them without a default."""
    made = Configuration()
    made.add_config("log_backend", str, default="python")
    made.add_config("default_seed", int, default=1)
    made.add_config("address", str)
    return made


@pytest.fixture
def global_config():
    """The settings of the process, without what the test set in code."""
    yield config
    for name in SETTINGS:
        delattr(config, name)


@pytest.fixture
def write(home, monkeypatch):
    """Write the file of settings, each time with a later time of change."""
    file = home / "settings.yaml"
    monkeypatch.setenv("ALOOP_CONFIG", str(file))
    writes = []

    def write(text, file=file):
        file.write_text(text, encoding="utf-8")
        writes.append(text)
        os.utime(file, (1e9, 1e9 + len(writes)))
        return file

    return write


# ---- Where a value comes from


def test_without_anything_else_a_setting_has_its_default(settings):
    assert settings.log_backend == "python"


def test_the_file_goes_before_the_default(settings, write):
    write("log_backend: from_file")
    assert settings.log_backend == "from_file"


def test_the_environment_goes_before_the_file(settings, write, monkeypatch):
    write("log_backend: from_file")
    monkeypatch.setenv("ALOOP_LOG_BACKEND", "from_environment")
    assert settings.log_backend == "from_environment"


def test_a_value_set_in_code_goes_before_the_environment(settings, write, monkeypatch):
    write("log_backend: from_file")
    monkeypatch.setenv("ALOOP_LOG_BACKEND", "from_environment")
    settings.log_backend = "from_code"
    assert settings.log_backend == "from_code"


def test_none_set_in_code_is_a_value(settings, monkeypatch):
    monkeypatch.setenv("ALOOP_LOG_BACKEND", "from_environment")
    settings.log_backend = None
    assert settings.log_backend is None


def test_a_value_set_in_code_is_read_like_any_other(settings):
    settings.default_seed = "7"
    assert settings.default_seed == 7


@pytest.mark.parametrize("value", ["many", object()])
def test_a_value_set_in_code_that_cannot_be_read_is_refused_at_once(settings, value):
    with pytest.raises(ConfigurationError, match=r"setting 'default_seed' is .* in code"):
        settings.default_seed = value
    assert settings.default_seed == 1


def test_deleting_a_value_set_in_code_brings_back_what_it_hid(settings, monkeypatch):
    monkeypatch.setenv("ALOOP_LOG_BACKEND", "from_environment")
    settings.log_backend = "from_code"
    del settings.log_backend
    assert settings.log_backend == "from_environment"


def test_deleting_what_was_not_set_in_code_changes_nothing(settings):
    del settings.log_backend
    assert settings.log_backend == "python"


def test_a_variable_set_later_counts_from_then_on(settings, monkeypatch):
    before = settings.log_backend
    monkeypatch.setenv("ALOOP_LOG_BACKEND", "from_environment")
    assert (before, settings.log_backend) == ("python", "from_environment")


def test_a_variable_unset_later_does_not_count_any_more(settings, monkeypatch):
    monkeypatch.setenv("ALOOP_LOG_BACKEND", "from_environment")
    before = settings.log_backend
    monkeypatch.delenv("ALOOP_LOG_BACKEND")
    assert (before, settings.log_backend) == ("from_environment", "python")


def test_an_empty_variable_is_no_value(settings, write, monkeypatch):
    write("log_backend: from_file")
    monkeypatch.setenv("ALOOP_LOG_BACKEND", "")
    assert settings.log_backend == "from_file"


def test_two_configurations_do_not_share_what_is_set_in_code(settings):
    other = Configuration()
    other.add_config("log_backend", str, default="python")
    settings.log_backend = "from_code"
    assert other.log_backend == "python"


# ---- The file


def test_the_file_is_in_the_home_unless_named(settings, home):
    assert settings.file == home / ".alooprc"


def test_the_file_in_the_home_is_read(settings, home):
    (home / ".alooprc").write_text("log_backend: from_home")
    assert settings.log_backend == "from_home"


def test_the_file_named_is_read_in_place_of_that_in_the_home(settings, home, write):
    (home / ".alooprc").write_text("default_seed: 7")
    write("log_backend: from_file")
    assert (settings.log_backend, settings.default_seed) == ("from_file", 1)


def test_the_name_of_the_file_may_begin_with_the_home(settings, home, monkeypatch):
    monkeypatch.setenv("ALOOP_CONFIG", "~/elsewhere.yaml")
    (home / "elsewhere.yaml").write_text("log_backend: from_elsewhere")
    assert settings.log_backend == "from_elsewhere"


def test_an_empty_name_of_the_file_is_no_name(settings, home, monkeypatch):
    monkeypatch.setenv("ALOOP_CONFIG", "")
    (home / ".alooprc").write_text("log_backend: from_home")
    assert settings.log_backend == "from_home"


def test_no_file_in_the_home_is_no_error(settings):
    assert settings.default_seed == 1


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n", "{}"])
def test_a_file_without_settings_is_no_error(settings, write, text):
    write(text)
    assert settings.default_seed == 1


def test_a_setting_without_a_value_in_the_file_has_its_default(settings, write):
    write("log_backend:\ndefault_seed: 7")
    assert (settings.log_backend, settings.default_seed) == ("python", 7)


def test_a_value_in_the_file_is_turned_into_the_type_of_the_setting(settings, write):
    write("default_seed: 7")
    assert settings.default_seed == 7


def test_the_file_is_read_as_utf_8(settings, write):
    write("log_backend: größer")
    assert settings.log_backend == "größer"


def test_a_file_that_changed_is_read_again(settings, write):
    write("log_backend: first")
    before = settings.log_backend
    write("log_backend: second")
    assert (before, settings.log_backend) == ("first", "second")


def test_a_file_that_appears_in_the_home_is_read(settings, home):
    before = settings.log_backend
    (home / ".alooprc").write_text("log_backend: from_home")
    assert (before, settings.log_backend) == ("python", "from_home")


def test_a_file_that_goes_away_does_not_count_any_more(settings, home):
    file = home / ".alooprc"
    file.write_text("log_backend: from_home")
    before = settings.log_backend
    file.unlink()
    assert (before, settings.log_backend) == ("from_home", "python")


def test_another_file_named_later_is_read(settings, home, write, monkeypatch):
    write("log_backend: first")
    before = settings.log_backend
    monkeypatch.setenv("ALOOP_CONFIG", str(write("log_backend: other", file=home / "other.yaml")))
    assert (before, settings.log_backend) == ("first", "other")


def test_a_file_that_was_corrected_is_read_again(settings, write):
    write("log_backends: first")
    with pytest.raises(ConfigurationError):
        _ = settings.log_backend
    write("log_backend: second")
    assert settings.log_backend == "second"


# ---- What is wrong with a file


def error_of(settings, name="log_backend"):
    with pytest.raises(ConfigurationError) as caught:
        getattr(settings, name)
    return str(caught.value)


def test_an_unknown_setting_in_the_file_is_refused_by_its_name(settings, write):
    file = write("log_backends: sqlite")
    message = error_of(settings)
    assert f"{file} has an unknown setting 'log_backends'" in message


def test_the_error_about_an_unknown_setting_names_those_that_exist(settings, write):
    write("log_backends: sqlite")
    assert "address, default_seed, log_backend" in error_of(settings)


def test_an_unknown_setting_is_refused_whichever_setting_is_read(settings, write):
    write("log_backends: sqlite")
    assert "'log_backends'" in error_of(settings, "default_seed")


def test_an_unknown_setting_is_refused_though_the_environment_has_the_value(
    settings, write, monkeypatch
):
    write("log_backends: sqlite")
    monkeypatch.setenv("ALOOP_LOG_BACKEND", "from_environment")
    assert "'log_backends'" in error_of(settings)


def test_an_unknown_setting_without_a_value_is_refused_too(settings, write):
    write("log_backends:")
    assert "'log_backends'" in error_of(settings)


def test_a_setting_that_is_no_text_is_refused_by_what_it_is(settings, write):
    write("7: sqlite")
    assert "unknown setting 7" in error_of(settings)


def test_the_name_of_a_variable_is_no_setting_in_the_file(settings, write):
    write("ALOOP_LOG_BACKEND: sqlite")
    assert "unknown setting 'ALOOP_LOG_BACKEND'" in error_of(settings)


@pytest.mark.parametrize(
    "text",
    ["log_backend: [", "log_backend: a: b", "\tlog_backend: a", "log_backend: !!python/none x"],
)
def test_a_file_that_is_not_yaml_is_refused_by_its_name(settings, write, text):
    file = write(text)
    assert f"{file} cannot be read as YAML" in error_of(settings)


def test_a_file_that_would_make_python_objects_is_refused(settings, write):
    write("log_backend: !!python/object/apply:os.mkdir [never]")
    assert "cannot be read as YAML" in error_of(settings)


def test_a_file_that_is_not_text_is_refused_by_its_name(settings, write):
    file = write("")
    file.write_bytes(b"log_backend: \xff")
    assert f"{file} cannot be read as YAML" in error_of(settings)


def test_a_folder_in_place_of_the_file_is_refused_by_its_name(settings, home, monkeypatch):
    monkeypatch.setenv("ALOOP_CONFIG", str(home))
    assert f"{home} cannot be read" in error_of(settings)


@pytest.mark.parametrize(
    ("text", "kind"), [("- log_backend\n", "list"), ("sqlite", "str"), ("7", "int")]
)
def test_a_file_that_holds_no_settings_is_refused_by_what_it_holds(settings, write, text, kind):
    file = write(text)
    assert f"{file} holds a {kind}" in error_of(settings)


def test_a_missing_file_that_was_named_is_refused_by_its_name(settings, home, monkeypatch):
    missing = home / "missing.yaml"
    monkeypatch.setenv("ALOOP_CONFIG", str(missing))
    assert f"ALOOP_CONFIG names {missing}, which does not exist" in error_of(settings)


# ---- What is wrong with a value


def test_a_value_that_cannot_be_read_is_refused_by_setting_text_and_variable(settings, monkeypatch):
    monkeypatch.setenv("ALOOP_DEFAULT_SEED", "many")
    message = error_of(settings, "default_seed")
    assert "setting 'default_seed' is 'many' in ALOOP_DEFAULT_SEED" in message


def test_a_value_that_cannot_be_read_is_refused_out_of_the_file_too(settings, write):
    file = write("default_seed: many")
    message = error_of(settings, "default_seed")
    assert "setting 'default_seed' is 'many'" in message
    assert str(file) in message


def test_the_error_about_a_value_says_what_the_default_is(settings, monkeypatch):
    monkeypatch.setenv("ALOOP_DEFAULT_SEED", "many")
    assert "leave it out to get 1" in error_of(settings, "default_seed")


def test_the_error_about_a_value_promises_no_default_where_there_is_none(settings, monkeypatch):
    settings.add_config("workers", int)
    monkeypatch.setenv("ALOOP_WORKERS", "many")
    message = error_of(settings, "workers")
    assert "setting 'workers' is 'many'" in message
    assert "leave it out" not in message


def test_a_bad_value_of_one_setting_leaves_the_others_alone(settings, monkeypatch):
    monkeypatch.setenv("ALOOP_DEFAULT_SEED", "many")
    assert settings.log_backend == "python"


def test_a_setting_with_neither_value_nor_default_is_refused_by_its_name(settings):
    assert "setting 'address' has no value and no default" in error_of(settings, "address")


def test_the_error_about_a_missing_value_names_the_three_places_for_it(settings, home):
    message = error_of(settings, "address")
    for place in ("config.address", "ALOOP_ADDRESS", str(home / ".alooprc")):
        assert place in message


def test_a_setting_without_a_default_can_have_a_value(settings, monkeypatch):
    monkeypatch.setenv("ALOOP_ADDRESS", "somewhere")
    assert settings.address == "somewhere"


def test_a_configuration_error_is_a_value_error(settings):
    with pytest.raises(ValueError):
        _ = settings.address


# ---- Settings that do not exist


def test_reading_an_unknown_setting_is_refused_by_what_there_is(settings):
    with pytest.raises(AttributeError, match=r"'seed'; .* address, default_seed, log_backend"):
        _ = settings.seed


def test_setting_an_unknown_setting_is_refused_by_what_there_is(settings):
    with pytest.raises(AttributeError, match=r"'seed'; .* address, default_seed, log_backend"):
        settings.seed = 3


def test_deleting_an_unknown_setting_is_refused_by_what_there_is(settings):
    with pytest.raises(AttributeError, match=r"'seed'; .* address, default_seed, log_backend"):
        del settings.seed


def test_whether_there_is_a_setting_can_be_asked(settings):
    assert (hasattr(settings, "default_seed"), hasattr(settings, "seed")) == (True, False)


def test_settings_are_listed_with_the_attributes(settings):
    assert {"default_seed", "log_backend", "address", "add_config"} <= set(dir(settings))


# ---- Adding a setting


def test_a_setting_that_was_added_is_named_by_its_key_in_capitals(settings, monkeypatch):
    settings.add_config("grace_s", float, default=30.0)
    monkeypatch.setenv("ALOOP_GRACE_S", "2.5")
    assert settings.grace_s == 2.5


def test_a_setting_can_have_a_variable_of_another_name(settings, monkeypatch):
    settings.add_config("grace_s", float, default=30.0, env_var="PATIENCE")
    monkeypatch.setenv("PATIENCE", "2.5")
    assert settings.grace_s == 2.5


def test_a_setting_with_a_variable_of_another_name_has_no_other(settings, monkeypatch):
    settings.add_config("grace_s", float, default=30.0, env_var="PATIENCE")
    monkeypatch.setenv("ALOOP_GRACE_S", "2.5")
    assert settings.grace_s == 30.0


def test_a_setting_is_called_by_its_key_in_the_file_whatever_its_variable(settings, write):
    settings.add_config("grace_s", float, default=30.0, env_var="PATIENCE")
    write("grace_s: 2.5")
    assert settings.grace_s == 2.5


def test_none_can_be_a_default(settings):
    settings.add_config("folder", str, default=None)
    assert settings.folder is None


def test_a_default_is_not_turned_into_anything(settings):
    settings.add_config("level", int, default="as it is")
    assert settings.level == "as it is"


# ---- The settings of aloop


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("log_backend", "python"),
        ("sqlite_database", "~/aloop_log.sqlite"),
        ("max_blob_size", 4096),
        ("profile", False),
        ("default_seed", 1),
        ("temp_dir", None),
    ],
)
def test_a_setting_of_aloop_has_this_default(global_config, name, default):
    value = getattr(global_config, name)
    assert (type(value), value) == (type(default), default)


@pytest.mark.parametrize(
    ("name", "variable", "text", "value"),
    [
        ("log_backend", "ALOOP_LOG_BACKEND", "sqlite", "sqlite"),
        ("sqlite_database", "ALOOP_SQLITEDB", "log.sqlite", "log.sqlite"),
        ("max_blob_size", "ALOOP_MAX_BLOB_SIZE", "100", 100),
        ("profile", "ALOOP_PROFILE", "true", True),
        ("default_seed", "ALOOP_DEFAULT_SEED", "17", 17),
        ("temp_dir", "ALOOP_TEMPDIR", "folder", "folder"),
    ],
)
class TestSettingsOfAloop:
    def test_come_from_this_variable(self, global_config, monkeypatch, name, variable, text, value):
        monkeypatch.setenv(variable, text)
        assert getattr(global_config, name) == value

    def test_come_from_the_file_by_their_name(
        self, global_config, write, name, variable, text, value
    ):
        write(f"{name}: {text}")
        assert getattr(global_config, name) == value

    def test_come_from_code(self, global_config, name, variable, text, value):
        setattr(global_config, name, value)
        assert getattr(global_config, name) == value


def test_there_are_no_other_settings_than_those(global_config, write):
    write("no_such_setting: 1")
    assert f"expected one of {', '.join(sorted(SETTINGS))}" in error_of(global_config)


@pytest.mark.parametrize("text", ["true", "True", "yes", "on", "1"])
def test_profile_is_on_with_any_word_for_yes(global_config, monkeypatch, text):
    monkeypatch.setenv("ALOOP_PROFILE", text)
    assert global_config.profile is True


@pytest.mark.parametrize("text", ["false", "False", "no", "off", "0"])
def test_profile_is_off_with_any_word_for_no(global_config, monkeypatch, text):
    monkeypatch.setenv("ALOOP_PROFILE", text)
    assert global_config.profile is False


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("off", False)])
def test_profile_in_the_file_may_be_what_yaml_makes_of_it(global_config, write, text, value):
    write(f"profile: {text}")
    assert global_config.profile is value


def test_profile_is_refused_when_it_is_neither_yes_nor_no(global_config, monkeypatch):
    monkeypatch.setenv("ALOOP_PROFILE", "perhaps")
    assert "setting 'profile' is 'perhaps'" in error_of(global_config, "profile")


@pytest.mark.parametrize("name", ["max_blob_size", "default_seed"])
@pytest.mark.parametrize("text", ["-1", "1.5", "many"])
def test_a_count_is_refused_when_it_is_no_whole_number_from_0_on(
    global_config, monkeypatch, name, text
):
    monkeypatch.setenv(f"ALOOP_{name.upper()}", text)
    assert f"setting {name!r} is {text!r}" in error_of(global_config, name)


@pytest.mark.parametrize("name", ["max_blob_size", "default_seed"])
def test_a_count_may_be_0(global_config, monkeypatch, name):
    monkeypatch.setenv(f"ALOOP_{name.upper()}", "0")
    assert getattr(global_config, name) == 0
