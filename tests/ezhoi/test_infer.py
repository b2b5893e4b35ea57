"""Any image = the test-set path; bad images, empty images, folders and the command."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lib.clip.tokens import encode_image, preprocess
from lib.config import load_config, to_yaml
from lib.data.images import ImageError
from lib.ezhoi import infer
from lib.ezhoi.batches import HoiSamples
from lib.ezhoi.predict import BOXES_H, BOXES_O, hoi_predictions, predict_pairs
from lib.ezhoi.weights import save_model
from lib.features.extract import extract_features
from lib.features.store import FeatureStore
from lib.runs import Run, write_text
from lib.stages import detector, inputs

SETTINGS = [
    "data.world.train_images=40",
    "data.world.test_images=10",
    "ezhoi.preset=prefix",
    "device=cpu",
    "threads=1",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose EZ-HOI has random weights, strong enough to tell pairs apart."""
    cfg = load_config("configs/tiny.yaml", SETTINGS)
    run = Run(tmp_path_factory.mktemp("runs") / "custom", cfg)
    inputs.world(cfg, run), inputs.models(cfg, run)

    def make(folder):
        model = detector.new_model(cfg, run, inputs.dataset(cfg, run, "train"))
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.05 * torch.randn(weight.shape, generator=generator)
        save_model(folder, model, inputs.clip_model(cfg, run).spec, cfg.ezhoi)

    run.artifact("ezhoi", {}, make)
    return cfg, run


@pytest.fixture(scope="module")
def parts(trained):
    """Positional arguments of detect_hois before the images, and its settings."""
    cfg, run = trained
    data = inputs.dataset(cfg, run, "test")
    networks = detector.load_ezhoi(cfg, run), inputs.clip_model(cfg, run), inputs.detector(cfg, run)
    settings = {"proposal_rule": inputs.proposal_rule(cfg), "prior_power": 2.8, "device": "cpu"}
    return (*networks, detector.classes_of(cfg, data), data.vocabulary), settings


@pytest.fixture(scope="module")
def files(trained):
    return [image.path for image in inputs.dataset(*trained, "test").images]


@pytest.fixture(scope="module")
def table(parts, files):
    return infer.detect_hois(*parts[0], files, **parts[1])


def test_scores_are_those_of_the_test_set_path(trained, parts, files, table, tmp_path):
    """Detections table, store and data loader on one side, nothing but files on the other (store in fp32)."""
    cfg, run = trained
    (model, clip, _, classes, _), _ = parts
    data = inputs.dataset(cfg, run, "test")
    inputs.detections(cfg, run, "test")
    names, store = [file.name for file in files], tmp_path / "store"
    extract_features(
        lambda images: encode_image(clip, images), files, names, store, {"test": 1},
        preprocess=preprocess(clip), dtype="float32",
    )  # fmt: skip
    samples = HoiSamples(data, inputs.proposals(cfg, run, data), FeatureStore.open(store), model.size, classes)
    pairs = predict_pairs(model, samples, batch_size=4, workers=0, device="cpu")
    expected = hoi_predictions(pairs.frame, pairs.logits, classes, 2.8)
    expected["file"] = [str(files[image]) for image in expected["image"]]  # rows: image, human, object, verb
    found = table.sort_values(["file", "human", "object_index", "verb_id"], ignore_index=True)
    assert len(found) == len(expected) > 300
    assert found["file"].equals(expected["file"].astype(found["file"].dtype))
    np.testing.assert_array_equal(found["hoi_id"], expected["hoi"])
    np.testing.assert_allclose(found[[*BOXES_H, *BOXES_O]], expected[[*BOXES_H, *BOXES_O]], atol=1e-3)
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-6, rtol=1e-5)
    assert found["score"].max() > 0.05 and found["score"].std() > 1e-3


def test_a_row_says_what_its_ids_mean(parts, table):
    vocabulary = parts[0][-1]
    assert list(table.columns) == list(infer.COLUMNS)
    assert (table["human"] != table["object_index"]).all()
    for row in table.iloc[:: len(table) // 20].itertuples():
        assert row.hoi == vocabulary.hoi_name(row.hoi_id)
        assert (row.object, row.verb) == (vocabulary.objects[row.object_id], vocabulary.verbs[row.verb_id])
        assert vocabulary.hoi_of[row.object_id, row.verb_id] == row.hoi_id
        assert row.score <= (row.score_human * row.score_object) ** 2.8 + 1e-6
    one = table[table["file"] == table["file"].iloc[0]]
    assert one["score"].is_monotonic_decreasing
    assert (one.groupby("human")[BOXES_H].nunique() == 1).all(axis=None)


def test_images_do_not_depend_on_their_company(parts, files, table):
    alone = infer.detect_hois(*parts[0], files[3:4], **parts[1], batch_size=1)
    together = table[table["file"] == str(files[3])].reset_index(drop=True)
    keys = ["human", "object_index", "hoi_id"]
    merged = alone.merge(together, on=keys, validate="one_to_one")
    assert len(merged) == len(alone) == len(together)
    np.testing.assert_allclose(merged["score_x"], merged["score_y"], atol=1e-6, rtol=1e-4)


def test_the_threshold_only_leaves_rows_out(parts, files, table):
    few = infer.detect_hois(*parts[0], files[:2], **parts[1], score_threshold=0.01)
    whole = table[table["file"].isin([str(file) for file in files[:2]])]
    assert 0 < len(few) == (whole["score"] >= 0.01).sum() < len(whole)


def test_boxes_scale_with_the_file_and_modes_are_read(parts, files, tmp_path):
    """Twice the pixels, the same picture: boxes twice as large; grey and palette files are images too."""
    original = Image.open(files[0])
    original.resize((320, 256), Image.Resampling.BICUBIC).save(tmp_path / "large.png")
    original.convert("P").save(tmp_path / "palette.png")
    original.convert("L").save(tmp_path / "grey.png")
    found = infer.detect_hois(*parts[0], sorted(tmp_path.iterdir()), **parts[1])
    assert found["file"].nunique() == 3
    largest = found.groupby("file")[["x2h", "x2o"]].max().max(axis=1)
    assert largest[str(tmp_path / "large.png")] > 160 >= largest[str(tmp_path / "grey.png")]


def test_images_without_pairs_are_reported(parts, files, monkeypatch):
    """No person at all, then a lone person."""
    live = infer.LiveDetector.__call__
    for n_human, count in ((0, 3), (1, 1)):

        def few(self, *views, n_human=n_human, count=count):
            found = live(self, *views)
            found.n_human[:], found.count[:] = n_human, count
            return found

        monkeypatch.setattr(infer.LiveDetector, "__call__", few)
        found = infer.detect_hois(*parts[0], files[:2], **parts[1])
        assert found.empty and found.attrs["without_pairs"] == [str(file) for file in files[:2]]
        assert found.dtypes["score"] == np.float32 and list(found.columns) == list(infer.COLUMNS)


def test_a_broken_image_stops_or_is_reported(parts, files, tmp_path):
    broken = tmp_path / "half.jpg"
    broken.write_bytes(files[0].read_bytes()[:900])
    with pytest.raises(ImageError, match="half.jpg"):
        infer.detect_hois(*parts[0], [files[0], broken], **parts[1])
    found = infer.detect_hois(*parts[0], [broken, files[0]], **parts[1], skip_broken=True)
    assert set(found["file"]) == {str(files[0])} and "damaged" in found.attrs["broken"][str(broken)]


def test_nan_is_no_empty_table(parts, files):
    (model, *rest), settings = parts
    scale = model.logit_scale_HO.detach().clone()
    try:
        model.logit_scale_HO.data.fill_(float("nan"))
        with pytest.raises(FloatingPointError, match=files[0].name):
            infer.detect_hois(model, *rest, files[:1], **settings)
    finally:
        model.logit_scale_HO.data.copy_(scale)


def test_folders_are_walked_for_images(tmp_path):
    for name in ("b.JPG", "a/c.png", "a/c_hois.png", "notes.txt", ".hidden.png", "d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in infer.image_files([tmp_path, tmp_path / "b.JPG"])]
    assert names == ["a/c.png", "b.JPG", "d.webp"]
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        infer.image_files([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image, expected files that end in .*\.jpg"):
        infer.image_files([tmp_path / "empty"])


def test_the_command_writes_tables_and_pictures(trained, files, tmp_path, capsys):
    _, run = trained
    folder = tmp_path / "photos"
    (folder / "again").mkdir(parents=True)
    for path in (folder / "one.jpg", folder / "again" / "one.jpg"):
        path.write_bytes(files[0].read_bytes())
    (folder / "zero.png").write_bytes(b"")
    before = (run.root / "config.yaml").read_bytes()
    command = [str(run.root), str(folder), "--top", "2", "detector.max_instances=4"]
    assert infer.main(command) == 2
    assert "zero.png" in capsys.readouterr().err

    assert infer.main([*command, "--skip-broken"]) == 0
    printed = capsys.readouterr().out
    out = run.root / "custom"
    assert {path.name for path in out.iterdir()} == {"hois.parquet", "hois.csv", "one_hois.png", "one_2_hois.png"}
    rows = pd.read_parquet(out / "hois.parquet")
    assert rows["human"].max() <= 3 and len(pd.read_csv(out / "hois.csv")) == len(rows)
    assert rows.iloc[0]["hoi"] in printed and "left out: an empty file" in printed
    assert Image.open(out / "one_hois.png").width > 900
    assert (run.root / "config.yaml").read_bytes() == before


def test_the_command_refuses_with_a_reason(trained, files, tmp_path, capsys):
    cfg, run = trained

    def refusal(*arguments):
        assert infer.main([str(argument) for argument in arguments]) == 2
        return capsys.readouterr().err

    assert "config.yaml" in refusal(tmp_path / "nowhere", files[0]) and not (tmp_path / "nowhere").exists()
    assert "no such file" in refusal(run.root, tmp_path / "none.jpg")
    assert "did you mean 'detector.nms_iou'" in refusal(run.root, files[0], "detector.nms_io=0.4")
    write_text(tmp_path / "untrained" / "config.yaml", to_yaml(cfg))
    assert "run the notebooks" in refusal(tmp_path / "untrained", files[0])
