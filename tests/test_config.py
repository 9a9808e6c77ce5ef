import pytest

from fastsurf.config import PRESETS, Config, check, from_dict, load_config, to_dict, to_toml
from fastsurf.errors import ConfigError
from fastsurf.training import cells_along, rays_a_step


def test_defaults_survive_toml(tmp_path):
    file = tmp_path / "c.toml"
    config = load_config(None, ["scene.center=[1, 2.5, -3]", "train.minutes=2", "scene.masks=ignore", 'scene.background="white"'])
    file.write_text(to_toml(config))
    assert load_config(str(file)) == config
    assert config.scene.center == (1.0, 2.5, -3.0) and config.train.minutes == 2.0


def test_from_dict_reads_what_to_dict_writes():
    config = load_config(None, ["mesh.closed=false", "train.seed=7"])
    assert from_dict(to_dict(config), "test") == config


@pytest.mark.parametrize("setting, found", [
    ("train.steps=0", "want 1 or more, found 0"), ("train.minutes=0", "want 0.001 or more"), ("train.foreground=2", "want 0 to 1, found 2"),
    ("sampling.delta_min=0.0", "want 0.0001 or more"), ("grid.resolution=0", "want 8 to 512"), ("threads=-1", "want 0 or more"),
    ("mesh.resolution=4", "want 8 or more, or 0, found 4"), ("mesh.resolution=-1", "want 0 to 16384"),
    ("field.base_resolution=3000000", "want 2 to 65536"),
    ("train.rate_mlp=nan", "found nan"), ("scene.background=pink", "want one of auto.*found 'pink'"), ("backend=gpu", "found 'gpu'"),
])  # fmt: skip
def test_values_that_cannot_work_are_refused(setting, found):
    with pytest.raises(ConfigError, match=f"{setting.partition('=')[0]}: .*{found}"):
        check(load_config(None, [setting]))


def test_an_interval_that_grows_is_refused():
    with pytest.raises(ConfigError, match=r"sampling\.delta_min: want at most sampling\.delta_max \(0\.001\), found 0\.5"):
        check(load_config(None, ["sampling.delta_max=0.001", "sampling.delta_min=0.5", "sampling.delta_until=0.001"]))


@pytest.mark.parametrize("settings, device, rays, cells", [
    ([], "cpu", 1024, 512), (["train.minutes=0.5"], "cpu", 512, 256), (["train.minutes=0.51"], "cpu", 1024, 512),
    (["train.minutes=0.25"], "cuda", 4096, 512), (["train.steps=10"], "cpu", 1024, 512),
    (["train.minutes=0.25", "mesh.resolution=300", "train.rays=64"], "cpu", 64, 300), (["mesh.resolution=300"], "cpu", 1024, 300),
])  # fmt: skip
def test_runs_of_half_a_minute_take_smaller_steps_and_a_coarser_mesh(settings, device, rays, cells):
    config = load_config(None, settings)
    assert (rays_a_step(config.train, device), cells_along(config, device)) == (rays, cells)


def test_every_preset_can_work():
    for name in (None, *(path.stem for path in PRESETS.glob("*.toml"))):
        check(load_config(name))


def test_settings_go_on_top_of_the_file(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[train]\nrays = 17\nseed = 3\n")
    config = load_config(str(file), ["train.rays=9"])
    assert (config.train.rays, config.train.seed) == (9, 3)


@pytest.mark.parametrize(
    "setting, message",
    [
        ("train.rais=3", "did you mean train.rays"),
        ("rays=3", "did you mean train.rays"),
        ("trian.rays=3", "did you mean train"),
        ("train.rays=many", "want int, found 'many'"),
        ("train.rays=1.5", "want int, found 1.5"),
        ("mesh.closed=3", "want bool"),
        ("scene.center=[1, 2]", "want"),
        ("train=3", "is a section"),
        ("train.rays", "section.key=value"),
    ],
)
def test_wrong_settings_get_one_helpful_line(setting, message):
    with pytest.raises(ConfigError) as e:
        load_config(None, [setting])
    assert message in str(e.value) and "\n" not in str(e.value)


def test_minutes_and_steps_are_one_dial(tmp_path):
    """Which of the two is said last counts; both at once are steps."""
    file = tmp_path / "c.toml"
    file.write_text("[train]\nminutes = 5\n")
    by_steps = load_config(None, ["train.steps=40"])
    for config in (load_config(str(file), start=by_steps), load_config(None, ["train.minutes=5"], start=by_steps)):
        assert (config.train.minutes, config.train.steps) == (5.0, None)
    assert load_config(str(file), ["train.steps=40"]).train.steps == 40
    assert load_config(None, ["train.minutes=none"], start=by_steps).train.steps == 40
    file.write_text("[train]\nminutes = 5\nsteps = 40\n")
    assert load_config(str(file)).train.steps == 40


def test_another_start_than_the_defaults(tmp_path):
    """What a method has different counts for those who choose it, not for those who go on with it."""
    start = load_config(None, ["loss.smooth=0.5", "train.seed=3"], "wild")
    assert load_config(None, ["train.rays=9"], "wild", start) == load_config(None, ["train.rays=9"], start=start)
    assert load_config(None, start=start) == start != load_config(method="wild")


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nothing"):
        load_config("nothing")
    (tmp_path / "b.toml").write_text("[train\n")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(str(tmp_path / "b.toml"))


def test_every_preset_loads_and_differs():
    from fastsurf.config import PRESETS

    presets = sorted(PRESETS.glob("*.toml"))
    assert presets
    for preset in presets:
        assert load_config(preset.stem) != Config(), preset.name
        assert len(preset.read_text().splitlines()) <= 15
