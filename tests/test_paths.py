from pathlib import Path

from med_model import paths


def test_shown_is_relative_inside_the_project_and_absolute_outside(tmp_path):
    assert paths.shown(paths.SFT_MODEL) == "post_model__after_sft"
    assert paths.shown(tmp_path / "model") == str((tmp_path / "model").resolve())


def test_made_by_names_scripts_that_exist():
    for command in paths.MADE_BY.values():
        python, script = command.split()
        assert python == "python" and (paths.ROOT / script).is_file()


def test_bundled_data_exists():
    bundled = [paths.PRETRAINING_DATA, paths.HELDOUT_TEXT, paths.SFT_DATA, paths.HELDOUT_QUESTIONS, paths.EXAM]
    for path in [*bundled, paths.CHOICES, paths.DPO_DATA, paths.HELDOUT_PAIRS]:
        assert isinstance(path, Path) and path.exists()
