"""What TensorBoard shows of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import small_runs
from pictures import pixels

from asng_ext.engine.experiment import Experiment
from asng_ext.runs.metrics import Events

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder: Path) -> Any:
    """All events of a loop."""
    everything = {"histograms": 0, "images": 0, "scalars": 0}
    found = accumulators.EventAccumulator(str(folder), size_guidance=everything)
    found.Reload()
    return found


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, pictures: Any) -> Experiment:
    some = small_runs.classification(tmp_path_factory.mktemp("runs") / "run")
    optimizer = some.optimizer()
    some.optimizer = lambda *_: optimizer  # type: ignore[method-assign]
    with pictures():
        some.search()
        some.retrain()
    return some


def test_theta_is_shown_as_histograms(experiment: Experiment) -> None:
    events = read(experiment.run.path / "events" / "search")
    theta = experiment.optimizer().theta.categorical  # type: ignore[attr-defined]
    variables = experiment.task.space.categorical
    names = set(events.Tags()["histograms"])
    assert names == {"theta/largest", *(f"theta/{name}" for name in variables)}
    for (name, variable), row in zip(variables.items(), theta):
        ((step, shown),) = [(e.step, e.histogram_value) for e in events.Histograms(f"theta/{name}")]
        count = len(variable.values)
        assert step == 1
        assert shown.bucket_limit == [place + 0.5 for place in range(count)]
        assert shown.bucket == pytest.approx(list(row[:count]))
        assert (shown.min, shown.max, shown.num) == (-0.5, count - 0.5, 1)
        assert shown.sum == pytest.approx(sum(i * p for i, p in enumerate(row[:count])))
    ((largest),) = [e.histogram_value for e in events.Histograms("theta/largest")]
    assert largest.num == len(variables)
    assert largest.sum / largest.num == pytest.approx(theta.max(axis=1).mean())


def test_pictures_are_shown(experiment: Experiment, tmp_path: Path) -> None:
    folder = experiment.run.path
    expected = {
        "search": {"architecture", "search", "theta"},
        "retrain": {"retrain", "confusion", "mistakes"},
    }
    for loop, names in expected.items():
        events = read(folder / "events" / loop)
        assert set(events.Tags()["images"]) == names
        for name in names:
            (image,) = events.Images(name)
            assert image.step == {"search": 1, "retrain": 2}[loop]
            (tmp_path / "again.png").write_bytes(image.encoded_image_string)
            assert (pixels(tmp_path / "again.png") == pixels(folder / f"{name}.png")).all()


def test_settings_are_shown_with_results(experiment: Experiment) -> None:
    folder = experiment.run.path
    events = read(folder / "events" / "retrain")
    results = json.loads((folder / "results.json").read_text())
    (shown,) = [each.value for each in events.Scalars("hparam/test_accuracy")]
    assert shown == pytest.approx(results["accuracy"])
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    plugin = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    settings = plugin.HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["seed"].number_value == experiment.seed
    assert settings["search.learning_rate"].number_value == experiment.search_config.learning_rate
    assert settings["classification.data"].string_value == "digits"
    assert settings["retrain.compile"].bool_value is False
    # The curves have no further point.
    assert [each.step for each in events.Scalars("test_accuracy")] == [1, 2]


def test_distributions_are_asked_for_only_where_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> dict[str, list[float]]:
        raise AssertionError

    events = Events(tmp_path / "a")
    with pytest.raises(AssertionError):
        events.add({"epoch": 1.0}, refuse)
    events.add({"epoch": 2.0}, dict)
    events.close()
    assert not read(tmp_path / "a").Tags()["histograms"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    events = Events(tmp_path / "b")
    events.add({"epoch": 1.0}, refuse)
    events.add_pictures([tmp_path / "no.png"], 1)
    events.add_settings({"a": 1}, {"b": 2.0})
    events.close()
    assert not (tmp_path / "b").exists()
