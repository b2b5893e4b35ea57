"""Old command lines: every flag is known, translations are exact, traps are named, mixtures are refused."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from lib.config import describe, load_config
from lib.ezhoi.from_command import main, translate
from lib.ezhoi.old_command import DEAD, ELSEWHERE, MISSING, SETTING, STOPS, Refused, known_flag, read_command

# spec ez-hoi.md §2.8, in the order of its table
LIVE = """use_insadapter txtcls_pt img_clip_pt unseen_pt_inj img_align txt_align act_descriptor logits_type vlmtxt N_CTX
tune_LY emb_dim prior_type prior_method adapter_pos adapter_num_layers feat_mask_type hyper_lambda use_weight_pred
label_learning fix_mem without_unseen_name finetune_allcls_utpl use_gt_boxes"""
DEAD_FLAGS = """CSC CLASS_TOKEN_POSITION LA LA_weight box_proj use_mlp_proj use_mean num_shot use_multi_hot file1
label_choice vis_embed_dim obj_affordance mem_adpt_self txt_mem_init clip_type repeat_factor_sampling self_mem_path
visual_mode clip_visual_layers_vit clip_text_context_length_vit"""
CRASHING = """use_distill use_consistloss multi_cross d_detr tpt pseudo_label fill_zs_verb_type vis_tor txtcls_descrip
init_txtcls_pt seperate_pre_pt clip_test fix_txt_pt"""
# §6, §8, §9.2 and the guides of the fork
RECIPE = """dataset data-root partitions zs zs_type num_classes clip_dir_vit pretrained clip_img_file epochs batch-size
world-size lr-vit lr-head eval cache resume port output-dir seed self_image_path action action-score-thresh
use_diffusion_bridge diffusion_config diffusion_model_path diffusion_text_mean diffusion_inference_steps
diffusion_embed_dim"""

KEYS = {key for key, *_ in describe()}

PUBLISHED = """
CUDA_VISIBLE_DEVICES=0,1,2,3 python main_tip_finetune.py --world-size 4 \\
 --pretrained "checkpoints/detr-r50-hicodet.pth" --output-dir checkpoints/uv/ --epochs 12 --use_insadapter \\
 --num_classes 117 --use_multi_hot --file1 pkl/union.p --clip_dir_vit checkpoints/pretrained_CLIP/ViT-B-16.pt \\
 --batch-size 8 --logits_type "HO" --port 1236 --txtcls_pt --img_align --unseen_pt_inj --img_clip_pt \\
 --zs --zs_type "unseen_verb" --clip_img_file pkl/clipbase_img_hicodet_train
"""
PROGRAM = "python main_tip_finetune.py"
USUAL = f"{PROGRAM} --use_insadapter --txtcls_pt --img_clip_pt --img_align --unseen_pt_inj --logits_type HO --epochs 12"


def notes(command: str) -> str:
    return "\n".join(line for lines in translate(command).notes.values() for line in lines)


@pytest.mark.parametrize(
    ("names", "kinds"),
    [(LIVE, {SETTING, MISSING, DEAD}), (DEAD_FLAGS, {DEAD}), (CRASHING, {STOPS}), (RECIPE, {SETTING, ELSEWHERE})],
)
def test_every_flag_of_the_spec_is_known(names, kinds):
    for name in names.split():
        flag = known_flag(name)
        assert flag.kind in kinds and flag.says, name
        assert not flag.key or flag.key in KEYS, name


def test_the_lists_above_are_those_of_the_spec(shared):
    text = (shared / "method" / "ez-hoi.md").read_text()
    table = text[text.index("### 2.8 Flag table") : text.index("There is no `--prompt_learning`")]
    named = set(re.findall(r"--(\w+)", table)) - {"mem_"}  # a family
    assert named <= {*LIVE.split(), *DEAD_FLAGS.split(), *CRASHING.split()}


def test_only_the_inert_live_flags_are_called_dead():
    assert [name for name in LIVE.split() if known_flag(name).kind == DEAD] == ["txtcls_pt"]


def test_the_published_command_becomes_the_published_settings():
    new = translate(PUBLISHED)
    assert new.complete
    assert new.settings == {
        "ezhoi.preset": "released",
        "ezhoi.batch_size": 32,
        "seed": 66,
        "data.root": "hicodet",
        "data.descriptions": "hicodet/hico_HOI_descrip.txt",
        "data.differences": "hicodet/zs_possibility/unseen_verb_diff.txt",
        "clip.source": "local-dir:weights/ViT-B-16",
        "detector.source": "weights/detr-r50-hicodet",
    }
    said = notes(PUBLISHED)
    assert "python -m lib.clip.released checkpoints/pretrained_CLIP/ViT-B-16.pt weights/ViT-B-16" in said
    assert "python -m lib.detection.released checkpoints/detr-r50-hicodet.pth weights/detr-r50-hicodet" in said
    assert new.notes[STOPS] == [] and new.notes["harmful"] == []
    assert [line.split(":")[0] for line in new.notes[DEAD]] == ["--use_multi_hot", "--file1", "--txtcls_pt"]


@pytest.mark.parametrize(
    "command",
    [
        PUBLISHED,
        PROGRAM,
        f"{USUAL} --zs --zs_type rare_first --use_diffusion_bridge --diffusion_config nowhere.yaml",
        f"{PROGRAM} --dataset vcoco --num_classes 24 --eval --resume ckpt_1_2.pt --batch-size 2",
        f"{USUAL} --txt_align --act_descriptor --lr 1e-5 --feat_mask_type 1 --prior_method 1",
    ],
)
def test_the_printed_file_loads_and_says_only_what_differs(command, tmp_path):
    new = translate(command)
    path = tmp_path / "mine.yaml"
    path.write_text(new.yaml())
    loaded = load_config(path)
    default = load_config(None, ["ezhoi.preset=released"])
    for key, value in new.settings.items():
        section, found, plain = key.split("."), loaded, default
        for part in section:
            found, plain = getattr(found, part), getattr(plain, part)
        assert found == value, key
        assert found != plain or key == "ezhoi.preset", key
    assert all(line.startswith("# ") for line in new.yaml().split("ezhoi:\n")[0].splitlines())


def test_what_a_command_leaves_out_is_switched_off_as_upstream_does():
    assert translate(PROGRAM).settings == {
        "ezhoi.preset": "released",
        "ezhoi.image_prompts": False,
        "ezhoi.pair_adapter": False,
        "ezhoi.unseen_prompts": False,
        "ezhoi.instance_adapters": "none",
        "ezhoi.epochs": 20,
        "seed": 66,
        "data.root": "hicodet",
        "data.zero_shot": "default",
        "data.descriptions": "hicodet/hico_HOI_descrip.txt",
        "clip.source": "local-dir:weights/ViT-B-16",
        "detector.source": "weights/detr-r50-hicodet",
    }
    said = notes(PROGRAM)
    assert "no --logits_type" in said and "no --txtcls_pt" in said and "no --batch-size" in said


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ("--N_CTX 4 --tune_LY 3", "ezhoi.prompt_depth", 3),
        ("--prior_type cb", "ezhoi.prior", "cb"),
        ("--feat_mask_type 1", "ezhoi.roi_dropout", 0.0),
        ("--adapter_pos end", "ezhoi.instance_adapters", "end"),
        ("--hyper_lambda=2.0", "ezhoi.prior_power", 2.0),
        ("--lr_head 1e-4", "ezhoi.lr_head", 1e-4),
        ("--lr 1e-5", "ezhoi.lr_vit", 1e-5),
        ("--batch-size 4 --world-size 4", "ezhoi.batch_size", 16),
        ("--logits_type HO+U", "ezhoi.regions", "HO+U"),
        ("--num_classes 600", "ezhoi.classes", "hoi"),
        ("--vlmtxt fix", "data.descriptions", None),  # '' is the default, so it is not printed
        ("--vlmtxt llava2", "data.descriptions", "hicodet/hico_HOI_descrip_2.txt"),
        ("--data-root ./data/hicodet/", "data.root", "data/hicodet"),
        ("--zs --zs_type unseen_object", "data.zero_shot", "unseen_object"),
        ("--zs", "data.zero_shot", "rare_first"),
        ("--zs_type unseen_object", "data.zero_shot", "default"),
        ("--zs_type unseen_object", "data.differences", "hicodet/zs_possibility/unseen_object_diff.txt"),
        ("--act_descriptor", "data.act_descriptors", "hicodet/all_act_descriptor.txt"),
        ("--txt_align", "ezhoi.text_adapter", True),
        ("--eval --resume a/ckpt_7_12.pt", "ezhoi.epochs", 0),
        ("--resume a/ckpt_7_12.pt", "ezhoi.init_from", "weights/ckpt_7_12"),
        ("--box-score-thresh 0.1", "detector.score_threshold", 0.1),
    ],
)
def test_translations(flags, key, value):
    assert translate(f"{USUAL} {flags}").settings.get(key) == value


def test_launchers_scripts_and_shell_around_a_command():
    wrapped = [
        f"cd EZ-HOI && {PROGRAM} --zs --epochs 3 2>&1 | tee log.txt",
        f"#!/bin/bash\n# a comment\nexport A=1\n{PROGRAM} \\\n  --zs \\\n  --epochs 3 > log.txt &\n",
        "!python3 EZ-HOI/main_tip_finetune.py --zs --epochs 3",
        "python -m main_tip_finetune --zs --epochs=3",
        "--zs --epochs 3",
    ]
    for command in wrapped:
        assert read_command(command) == ("main_tip_finetune", {"zs": [], "epochs": ["3"]}, 1), command
    launched = "torchrun --nproc_per_node=4 main_tip_finetune.py --batch-size 8"
    assert translate(launched).settings["ezhoi.batch_size"] == 32


def test_traps_are_named():
    assert "ezhoi.classes: hoi" in notes(f"{USUAL} --num_classes 600")
    assert "difference file of rare_first" in notes(USUAL)
    assert "trained on every class" in notes(f"{PROGRAM} --zs_type unseen_verb")
    assert "--resume without --img_align, --unseen_pt_inj:" in notes(
        f"{PROGRAM} --use_insadapter --img_clip_pt --eval --resume x.pt"
    )
    assert "old optimiser" in notes(f"{USUAL} --resume x.pt")
    assert "no difference file" in notes(f"{USUAL} --zs --zs_type uc3")
    assert "a template describes" in notes(f"{USUAL} --vlmtxt fix")
    assert "--logits_type HO+U+T" in notes(f"{PROGRAM} --logits_type HO+U+T")
    assert "--port" in notes(f"{USUAL} --port 1") and "--cache" in notes(f"{USUAL} --cache")


def test_a_value_that_changes_nothing_is_not_reported():
    new = translate(f"{USUAL} --emb_dim 64 --prior_method 0 --vis_tor 1 --fill_zs_verb_type 0")
    assert new.complete and not new.notes[STOPS]
    new = translate(f"{USUAL} --emb_dim 32 --vis_tor 2")
    assert new.notes[MISSING] == ["--emb_dim: adapters are 64 wide"] and len(new.notes[STOPS]) == 1


def test_the_page_names_flags_and_settings_that_exist():
    page = Path("docs/coming_from.md").read_text()
    flags = set(re.findall(r"--(\w[\w-]*)", page)) - {"notebooks", "clip", "annotations"}  # our own
    assert len(flags) > 40
    for name in flags:
        assert known_flag(name).says, name
    named = re.findall(r"(?<![\w./])((?:data|clip|detector|ezhoi|bridge|text_bank)\.[a-z_]+)", page)
    assert len(named) > 40 and set(named) <= KEYS


# ---------------------------------------------------------------- the bridge


def test_steps_of_the_fork_are_depth_and_count(tmp_path):
    flags = "--use_diffusion_bridge --diffusion_model_path m.pt --diffusion_inference_steps 300"
    new = translate(f"{USUAL} {flags}")
    assert new.settings["bridge.entry_step"] == new.settings["bridge.num_steps"] == 300
    assert "ezhoi.bridge" not in new.settings
    assert '--notebooks 01-04"' in new.run and '--notebooks 01-02"' in translate(USUAL).run

    config = tmp_path / "bridge.yaml"
    config.write_text(
        "model_path: coco/model-300.pt\ntext_mean_path: coco_text_mean.pkl\ntraining_steps: 50\n"
        "inference_steps: 1000\nscale_factor: 10.0\n"
    )
    trained = translate(f"{USUAL} --use_diffusion_bridge --diffusion_config {config}").settings
    assert trained["ezhoi.bridge"] == "weights/model-300" and trained["ezhoi.bridge_steps"] == [50]
    assert (trained["bridge.entry_step"], trained["bridge.num_steps"], trained["bridge.scale"]) == (1000, 600, 10.0)
    evaluated = translate(f"{USUAL} --use_diffusion_bridge --diffusion_config {config} --eval").settings
    assert "ezhoi.bridge" not in evaluated


def test_adapted_text_and_a_caption_bridge_are_refused():
    captions = f"{USUAL} --use_diffusion_bridge --diffusion_config configs/diffusion_bridge_config.yaml"
    adapted = f"{USUAL} --use_diffusion_bridge --diffusion_text_mean hoi_text_mean_adapted_unseen_verb_vitB.pkl"
    for flag in ("--txt_align", "--act_descriptor"):
        with pytest.raises(Refused, match=f"{flag} with a bridge that learnt captions.*\n  mend: drop {flag}"):
            translate(f"{captions} {flag}")
        assert translate(f"{adapted} {flag}").complete


def test_bridge_flags_without_the_switch_do_nothing():
    new = translate(f"{USUAL} --diffusion_inference_steps 100")
    assert not [key for key in new.settings if key.startswith("bridge.")]
    assert "no bridge is used" in notes(f"{USUAL} --diffusion_inference_steps 100")


# ---------------------------------------------------------------- refusals and exit codes


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{PROGRAM} --zs_typ unseen_verb", "--zs_typ: unknown flag; did you mean --zs_type?"),
        (f"{PROGRAM} --prompt_learning", "--prompt_learning: unknown flag"),
        (f"{PROGRAM} --zs unseen_verb", "--zs: found unseen_verb, expected no value"),
        (f"{PROGRAM} --epochs", "--epochs: found no value, expected one value"),
        (f"{PROGRAM} --epochs twelve", "--epochs: found 'twelve', expected a value for ezhoi.epochs"),
        (f"{PROGRAM} --batch-size big", "--batch-size: found 'big', expected a whole number"),
        (f"{PROGRAM} --zs --zs_type unseen_verbs", "expected one of default, rare_first"),
        (f"{PROGRAM} --num_classes 407", "--num_classes: found '407', expected one of 117, 600"),
        (f"{PROGRAM} --dataset vcoco --num_classes 117", "expected one of 24, 236"),
        (f"{PROGRAM} --dataset vcoco --zs", "V-COCO has no zero-shot split"),
        (f"{PROGRAM} --use_diffusion_bridge --diffusion_inference_steps 5000", "expected 1 to 1000"),
        (f'{PROGRAM} --logits_type "HO', "No closing quotation"),
        (f"{PROGRAM} --zs\n{PROGRAM} --epochs 3", "found 2 commands"),
        (f"{PROGRAM} --output-dir $OUT/uv", "found the shell variable in '$OUT/uv', expected its value"),
        ("python train.py --zs", "expected a command with main_tip_finetune.py"),
        ("python extract_adapted_embeddings.py --checkpoint c.pth", "notebook 05"),
        ("python CLIP_hicodet_extract.py", "notebook 01"),
        ("", "found 0 commands"),
    ],
)
def test_refusals(command, message):
    with pytest.raises(Refused) as refused:
        translate(command)
    assert message in str(refused.value)


def test_exit_codes_and_ways_in(capsys, tmp_path, monkeypatch):
    assert main([USUAL]) == 0
    quoted = capsys.readouterr().out
    assert main(USUAL.split()) == 0 and capsys.readouterr().out == quoted
    script = tmp_path / "train.sh"
    script.write_text(USUAL + "\n")
    assert main([str(script)]) == 0 and capsys.readouterr().out == quoted
    monkeypatch.setattr("sys.stdin", io.StringIO(USUAL))
    assert main(["-"]) == 0 and capsys.readouterr().out == quoted

    assert main([f"{USUAL} --label_learning"]) == 1
    printed = capsys.readouterr()
    assert "preset: released" in printed.out and "NOT equivalent" in printed.out and "--label_learning" in printed.err
    assert main([f"{USUAL} --nonsense"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("refused: --nonsense: unknown flag; did you mean --")
