"""Readers of EZ-HOI's class text files (spec ez-hoi.md §4.1) and the templates that replace them."""

import json

import numpy as np
import pytest
import torch

from lib.data import vocabulary as words
from lib.data.descriptions import (
    Difference,
    read_act_descriptors,
    read_descriptions,
    read_differences,
    template_act_descriptors,
    template_descriptions,
    template_differences,
)
from lib.data.vocabulary import GERUNDS, VCOCO_GERUNDS, Vocabulary, verb_cues

# 0 hold bicycle, 1 ride bicycle, 2 no_interaction bicycle, 3 hold sports_ball, 4 kick sports_ball
SMALL = Vocabulary(
    ("person", "bicycle", "sports_ball"), ("hold", "kick", "no_interaction", "ride"),
    np.array([1, 1, 1, 2, 2]), np.array([0, 3, 2, 0, 1]),
)  # fmt: skip
NAMES = [
    "(hold, bicycle)",
    "(ride, bicycle)",
    "(no_interaction, bicycle)",
    "(hold, sports ball)",
    "(kick, sports ball)",
]


def hico(shared):
    """The classes of HICO-DET."""
    tables = {}
    for name in ("hoi", "objects", "verbs"):
        tables[name] = json.loads((shared / "facts" / f"hico_{name}.json").read_text())[name]
    objects, verbs = (tuple(row["name"] for row in tables[name]) for name in ("objects", "verbs"))
    pairs = np.array([[row["object_id"], row["verb_id"]] for row in tables["hoi"]])
    return Vocabulary(objects, verbs, pairs[:, 0], pairs[:, 1])


def blocks(texts):
    return "\n".join(f"{n}. A photo of class {n}:\n   - Description: {text}\n" for n, text in enumerate(texts, start=1))


def wrong(call, *parts, kind=ValueError):
    with pytest.raises(kind) as error:
        call()
    missing = [part for part in ("found", "expected", "mend", *parts) if part not in str(error.value)]
    assert not missing, f"{missing} not in {error.value}"


# ---------------------------------------------------------------- descriptions


def test_blocks_of_three_lines(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text(blocks(["one", "two: cut here", "three", "four", "five"]))  # no blank line at the end
    assert read_descriptions(path, SMALL) == ["one", "two", "three", "four", "five"]
    assert read_descriptions(path, 5) == read_descriptions(path, SMALL)
    path.write_text(path.read_text().replace("\n", "\r\n") + "\r\n\r\n")
    assert read_descriptions(path, SMALL)[4] == "five"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (blocks(["one", "two", "three", "four"]), ["4 description blocks", "5"]),
        (blocks(["1", "2", "3", "4", "5", "6"]), ["6 description blocks", "5"]),
        (blocks(["one", "", "three", "four", "five"]), ["line 4", "class 1 (ride bicycle)"]),
        (blocks(["one", "two", "three", "four", "five"]).replace("\n\n3.", "\n3."), ["line 4", "ride bicycle"]),
        (blocks(["one", "two", "three", "four", "five"]).replace("\n\n3.", "\n\n\n3."), ["line 7", "no interaction"]),
        ("1. only a header:", ["line 1", "class 0 (hold bicycle)"]),
        ("", ["0 description blocks"]),
    ],
)
def test_broken_blocks_are_named(tmp_path, text, parts):
    path = tmp_path / "d.txt"
    path.write_text(text)
    wrong(lambda: read_descriptions(path, SMALL), str(path), *parts)


def test_a_missing_file_names_the_setting(tmp_path):
    for read, setting in [
        (lambda path: read_descriptions(path, SMALL), "data.descriptions"),
        (lambda path: read_differences(path, SMALL, [1]), "data.differences"),
        (lambda path: read_act_descriptors(path, SMALL), "data.act_descriptors"),
    ]:
        wrong(lambda read=read: read(tmp_path / "none.txt"), "none.txt", setting, kind=FileNotFoundError)


def pair_file(headers, text="Arms bent. Legs"):
    return "\n".join(f"{header}\n{number} {text}\nmore\n" for number, header in enumerate(headers))


@pytest.mark.parametrize(
    "headers",
    [
        NAMES,
        ["('Hold', 'bicycle')", "(ride, Bicycle):", "(no interaction, bicycle)", "(hold, sports_ball)",
         '("kick", "sports ball")'],
        ["(0, 1)", "(3, 1)", "(2, 1)", "(0, 2)", "(1, 2)"],  # ids, objects from 0
        ["(0, 2)", "(3, 2)", "(2, 2)", "(0, 3)", "(1, 3)"],  # ids, objects from 1, as V-COCO
    ],
)  # fmt: skip
def test_pairs_are_matched_by_class_and_not_by_position(tmp_path, headers):
    path = tmp_path / "d.txt"
    path.write_text(pair_file(headers))
    assert read_descriptions(path, SMALL) == [f"{n} Arms bent." for n in range(5)]
    path.write_text(pair_file(headers[::-1]))
    assert read_descriptions(path, SMALL) == [f"{n} Arms bent." for n in (4, 3, 2, 1, 0)]


def test_three_hundred_characters_back_to_a_full_stop(tmp_path):
    path = tmp_path / "d.txt"
    long = "x" * 200 + ".\n" + "y" * 97 + ".z."  # the last kept character is the stop at 299; joined by one blank
    texts = [long, "x" * 299 + ".more.", "no stop at all", "a. b. c", "n" * 400]
    path.write_text("\n\n".join(f"{header}\n{text}" for header, text in zip(NAMES, texts, strict=True)))
    found = read_descriptions(path, SMALL)
    assert found[0] == "x" * 200 + ". " + "y" * 97 + "." and len(found[0]) == 300
    assert found[1:] == ["x" * 299 + ".", "no stop at all", "a. b.", "n" * 300]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (pair_file(NAMES[:3]), ["no description of hold sports ball, kick sports ball"]),
        (pair_file([*NAMES[:4], "(kick, bicycle)"]), ["line 17", "(kick, bicycle)"]),
        (pair_file([*NAMES, NAMES[1]]), ["line 21", "(ride, bicycle)", "one a class"]),
        (pair_file(NAMES[:4]) + NAMES[4], ["line 16", "kick sports ball"]),
        (pair_file(["(0, 1)", "(3, 1)", "(2, 1)", "(0, 2)", "(1, 9)"]), ["line 17", "(1, 9)"]),
    ],
)
def test_broken_pairs_are_named(tmp_path, text, parts):
    path = tmp_path / "d.txt"
    path.write_text(text)
    wrong(lambda: read_descriptions(path, SMALL), str(path), *parts)


def test_pairs_need_the_vocabulary(tmp_path):
    (tmp_path / "d.txt").write_text(pair_file(NAMES))
    with pytest.raises(TypeError, match="pass the Vocabulary"):
        read_descriptions(tmp_path / "d.txt", 5)


# ---------------------------------------------------------------- differences


def test_differences_of_the_unseen_classes(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("4, 3\nFoot at the ball. It weighs 2.5 kg\nor so.  \n\n1, 0\nSits on it.\n")
    assert read_differences(path, SMALL, [1, 4]) == {
        1: Difference(0, ["Sits on it"]),
        4: Difference(3, ["Foot at the ball", "It weighs 2.5 kg or so"]),
    }
    assert read_differences(path, SMALL, []) == read_differences(path, SMALL, [1, 4])  # default keeps all


def test_differences_of_the_seen_classes(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("0, 3\na.\n2, 0\nb.\n3, 3\nc.\n")
    assert {hoi: d.seen for hoi, d in read_differences(path, SMALL, [1, 4], of="seen").items()} == {0: 3, 2: 0, 3: 3}
    path.write_text("0, 1\na.\n2, 0\nb.\n3, 3\nc.\n")
    wrong(lambda: read_differences(path, SMALL, [1, 4], of="seen"), "line 1", "unseen")


@pytest.mark.parametrize(
    ("text", "unseen", "parts"),
    [
        ("1, 4\na.\n4, 3\nb.", [1, 4], ["line 1", "class 1 (ride bicycle)", "4 (kick sports ball), which is unseen"]),
        ("1, 4\na.\n4, 3\nb.", [], ["line 1", "which is unseen"]),
        ("1, 0\na.", [1, 4], ["no entry of 4 (kick sports ball)", "2 unseen classes"]),
        ("1, 0\na.\n4, 3\nb.", [1], ["line 3", "class 4 (kick sports ball)", "split"]),
        ("1, 0\na.\n5, 3\nb.", [1], ["line 3", "HOI id 5", "0..4"]),
        ("1, 7\na.", [1], ["line 1", "HOI id 7", "0..4"]),
        ("1, 0\na.\n1, 0\nb.", [1], ["line 3", "again"]),
        ("1, 0\n . \n", [1], ["line 1", "no text", "ride bicycle"]),
        ("some text\n1, 0\na.", [1], ["line 1", "some text", "header"]),
    ],
)
def test_broken_differences_are_named(tmp_path, text, unseen, parts):
    path = tmp_path / "d.txt"
    path.write_text(text)
    wrong(lambda: read_differences(path, SMALL, unseen), str(path), *parts)


# ---------------------------------------------------------------- action descriptors


ACTS = (
    "0, a person holding a bicycle\nHere are cues:\n1. hands on the bar\n2. feet on the ground \nfree text\n\n"
    "2, a person and a bicycle\n\n1, a person riding a bicycle\n1. seat\n"
    "3, a person holding a sports ball\n3. fingers\n4, a person kicking a sports ball\n1. foot\n9. grass\n"
)


def test_action_descriptors_keep_numbered_items(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(ACTS)
    expected = [["hands on the bar", "feet on the ground"], ["seat"], [], ["fingers"], ["foot", "grass"]]
    assert read_act_descriptors(path, SMALL) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (ACTS.replace("3, a person", "5, a person"), ["line 11", "HOI id 5", "0..4"]),
        (ACTS.replace("3, a person", "1, a person"), ["line 11", "HOI id 1 again"]),
        (ACTS.split("4, a person")[0], ["no header of 4 (kick sports ball)"]),
        ("1. hands\n" + ACTS, ["line 1", "'1. hands'", "header"]),
    ],
)
def test_broken_action_descriptors_are_named(tmp_path, text, parts):
    path = tmp_path / "a.txt"
    path.write_text(text)
    wrong(lambda: read_act_descriptors(path, SMALL), str(path), *parts)


# ---------------------------------------------------------------- templates


def test_every_verb_has_its_own_cues_once():
    listed = [verb for verbs in words._CUES for verb in verbs.split()]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(GERUNDS) | set(VCOCO_GERUNDS)
    assert verb_cues("juggle", "apple")[1] == "the apple within reach of the person"
    assert verb_cues("hug", "person")[1] == "the other person close to the chest or the face"


def test_template_descriptions_of_known_classes():
    texts = template_descriptions(SMALL)
    assert texts[3] == (
        "A person holding a sports ball has bent arms and closed fingers. "
        "The photo shows the sports ball in the hands, off the ground, and the hands around the sports ball."
    )
    assert texts[2].startswith("A person near a bicycle has ")


def test_templates_of_all_600_classes(shared, tmp_path):
    vocabulary = hico(shared)
    texts, cues = template_descriptions(vocabulary), template_act_descriptors(vocabulary)
    assert len(set(texts)) == 600 == len({tuple(three) for three in cues})
    assert all(len(three) == 3 and all(three) for three in cues)
    assert not any(mark in text for text in texts for mark in ":{}_")
    path = tmp_path / "d.txt"
    path.write_text(blocks(texts))
    assert read_descriptions(path, vocabulary) == texts


def test_the_related_class_is_the_most_similar_seen_one():
    similarity = torch.eye(5)
    similarity[1, [0, 2, 3]] = torch.tensor([0.2, 0.6, 0.5])
    similarity[1, 4] = 0.9  # more similar, but unseen
    similarity[4, [0, 2, 3]] = 0.5  # tied: 3 shares the ball
    found = template_differences(SMALL, [4, 1], similarity)
    assert {hoi: difference.seen for hoi, difference in found.items()} == {1: 2, 4: 3}
    similarity[3, [0, 1, 2, 4]] = 0.5  # tied: 0 shares the verb
    assert template_differences(SMALL, [3], similarity)[3].seen == 0
    assert template_differences(SMALL, [], similarity) == {}


def test_difference_sentences_contrast_the_two_classes():
    ones = torch.ones(5, 5)
    (kick,) = template_differences(SMALL, [4], ones).values()
    photo = "The photo of a person kicking a sports ball shows"
    assert kick == Difference(
        3,
        [
            "A person kicking a sports ball is not the same as a person holding a sports ball",
            f"{photo} one leg swung forward and arms out for balance instead of bent arms and closed fingers",
            f"{photo} the sports ball low near the ground instead of the sports ball in the hands, off the ground",
            f"{photo} the foot or hand at the sports ball instead of the hands around the sports ball",
        ],
    )
    same_verb = template_differences(SMALL, [3], torch.eye(5).index_fill(1, torch.tensor([0]), 0.5))[3]
    assert same_verb.seen == 0 and same_verb.sentences[1:] == ["The object is a sports ball and not a bicycle"]


def test_written_differences_are_read_back(tmp_path):
    made = template_differences(SMALL, [1, 4], torch.ones(5, 5))
    path = tmp_path / "diff.txt"
    path.write_text("".join(f"{hoi}, {d.seen}\n{'. '.join(d.sentences)}.\n" for hoi, d in made.items()))
    assert read_differences(path, SMALL, [1, 4]) == made


@pytest.mark.parametrize(
    ("unseen", "similarity"),
    [
        ([1], torch.eye(4)),
        ([1], torch.full((5, 5), float("nan"))),
        ([5], torch.eye(5)),
        ([-1], torch.eye(5)),
        ([0, 1, 2, 3, 4], torch.eye(5)),
    ],
)
def test_impossible_requests_for_differences(unseen, similarity):
    with pytest.raises(ValueError, match=r"found (?s:.*)expected"):
        template_differences(SMALL, unseen, similarity)
