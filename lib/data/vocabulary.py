"""Objects, verbs and HOI classes as an annotation file states them, and the English of their class texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

NO_INTERACTION = "no_interaction"
PERSON = "person"

# Verb -> gerund for every HICO-DET verb, with the particle that its name carries (spec ez-hoi.md, Appendix A).
# `no_interaction` takes the word "and" in place of a gerund.
GERUNDS = dict(
    adjust="adjusting", assemble="assembling", block="blocking", blow="blowing", board="boarding",
    break_="breaking", brush_with="brushing with", buy="buying", carry="carrying", catch="catching",
    chase="chasing", check="checking", clean="cleaning", control="controlling", cook="cooking",
    cut="cutting", cut_with="cutting with", direct="directing", drag="dragging", dribble="dribbling",
    drink_with="drinking with", drive="driving", dry="drying", eat="eating", eat_at="eating at",
    exit="exiting", feed="feeding", fill="filling", flip="flipping", flush="flushing", fly="flying",
    greet="greeting", grind="grinding", groom="grooming", herd="herding", hit="hitting", hold="holding",
    hop_on="hopping on", hose="hosing", hug="hugging", hunt="hunting", inspect="inspecting",
    install="installing", jump="jumping", kick="kicking", kiss="kissing", lasso="lassoing",
    launch="launching", lick="licking", lie_on="lying on", lift="lifting", light="lighting", load="loading",
    lose="losing", make="making", milk="milking", move="moving", no_interaction="and", open="opening",
    operate="operating", pack="packing", paint="painting", park="parking", pay="paying", peel="peeling",
    pet="petting", pick="picking", pick_up="picking up", point="pointing", pour="pouring", pull="pulling",
    push="pushing", race="racing", read="reading", release="releasing", repair="repairing", ride="riding",
    row="rowing", run="running", sail="sailing", scratch="scratching", serve="serving", set="setting",
    shear="shearing", sign="signing", sip="sipping", sit_at="sitting at", sit_on="sitting on",
    slide="sliding", smell="smelling", spin="spinning", squeeze="squeezing", stab="stabbing",
    stand_on="standing on", stand_under="standing under", stick="sticking", stir="stirring",
    stop_at="stopping at", straddle="straddling", swing="swinging", tag="tagging", talk_on="talking on",
    teach="teaching", text_on="texting on", throw="throwing", tie="tying", toast="toasting", train="training",
    turn="turning", type_on="typing on", walk="walking", wash="washing", watch="watching", wave="waving",
    wear="wearing", wield="wielding", zip="zipping",
)  # fmt: skip
GERUNDS["break"] = GERUNDS.pop("break_")

# V-COCO's 24 classes, "action role" with an underscore (data-and-evaluation.md §2.3): `obj` is acted upon, `instr` is
# the tool or the support, so the preposition tells the two apart ("hitting a ball", "hitting with a bat").
VCOCO_GERUNDS = dict(
    hold_obj="holding", sit_instr="sitting on", ride_instr="riding", look_obj="looking at",
    hit_instr="hitting with", hit_obj="hitting", eat_obj="eating", eat_instr="eating with",
    jump_instr="jumping on", lay_instr="lying on", talk_on_phone_instr="talking on", carry_obj="carrying",
    throw_obj="throwing", catch_obj="catching", cut_instr="cutting with", cut_obj="cutting",
    work_on_computer_instr="working on", ski_instr="skiing on", surf_instr="surfing on",
    skateboard_instr="skateboarding on", drink_instr="drinking from", kick_obj="kicking", read_obj="reading",
    snowboard_instr="snowboarding on",
)  # fmt: skip

# The published prompts write "an" before these five objects only ("a umbrella" stays; spec Appendix A).
_AN_OBJECTS = {"airplane", "apple", "elephant", "orange", "oven"}
# What English asks for where that rule fails. V-COCO has no published prompts (EZ-HOI reads HICO-DET's there by
# mistake, spec §2.7), so its classes, and every template text, use these.
_PROPER_PHRASES = {
    "umbrella": "an umbrella",
    "skis": "a pair of skis",
    "scissors": "a pair of scissors",
    "broccoli": "broccoli",
    "tv": "a TV",
}

# Verbs that look alike share three cues: the person's body, the object ({o}), and where the two are.
_ANY_CUES = (
    "both arms turned towards the {o}",
    "the {o} within reach of the person",
    "the person right next to the {o}",
)
_CUES = {
    "ride race straddle hop_on ride_instr": (
        "bent knees, a leg on either side and a forward gaze",
        "the {o} under the body, bearing its weight",
        "the person on top of the {o}",
    ),
    "ski_instr surf_instr skateboard_instr snowboard_instr": (
        "bent knees, feet apart and arms out for balance",
        "the {o} flat under the feet",
        "the feet on the {o} in motion",
    ),
    "jump flip jump_instr": (
        "bent legs and both feet off the ground",
        "the {o} in the air or just below",
        "the person above the ground together with the {o}",
    ),
    "sit_on sit_instr": (
        "bent hips and knees and an upright back",
        "the {o} at rest under the hips",
        "the weight of the person on the {o}",
    ),
    "sit_at eat_at": (
        "bent hips and knees and forearms in front of the chest",
        "the {o} in front of the chest",
        "the person on a seat facing the {o}",
    ),
    "lie_on lay_instr": (
        "a stretched out, horizontal body",
        "the {o} under the whole back",
        "the person flat on top of the {o}",
    ),
    "stand_on": (
        "straight legs and an upright body",
        "the {o} under both feet",
        "the person upright on top of the {o}",
    ),
    "stand_under": (
        "straight legs and an upright body",
        "the {o} overhead",
        "the person below the {o}",
    ),
    "stop_at": (
        "a halted body that faces the road",
        "the {o} beside the road",
        "the person waiting a few steps from the {o}",
    ),
    "hold carry lift pick pick_up wield squeeze toast hold_obj carry_obj": (
        "bent arms and closed fingers",
        "the {o} in the hands, off the ground",
        "the hands around the {o}",
    ),
    "throw launch release serve spin throw_obj": (
        "one arm swung forward and an open hand",
        "the {o} leaving the hand",
        "the {o} moving away from the person",
    ),
    "catch block catch_obj": (
        "both arms stretched out and eyes on the {o}",
        "the {o} in flight towards the hands",
        "the {o} just in front of the hands",
    ),
    "kick dribble kick_obj": (
        "one leg swung forward and arms out for balance",
        "the {o} low near the ground",
        "the foot or hand at the {o}",
    ),
    "swing hit hit_instr hit_obj": (
        "a twisted upper body and both arms drawn to one side",
        "the {o} at the end of the swing",
        "a wide arc of the arms with the {o}",
    ),
    "push pull drag move slide turn": (
        "a leaning body and tensed arms",
        "the {o} on the ground at arm's length",
        "both hands on the {o}, shifting it",
    ),
    "eat lick sip drink_with smell blow brush_with eat_obj eat_instr drink_instr": (
        "a raised hand and the mouth turned to the {o}",
        "the {o} close to the mouth",
        "the face touching or nearly touching the {o}",
    ),
    "clean wash dry hose paint": (
        "a stretched arm moving back and forth",
        "the {o} with a wet or worked surface",
        "a hand with a tool along the surface of the {o}",
    ),
    "cut cut_with peel stab grind stick cut_instr cut_obj": (
        "a lowered head and both hands close together",
        "the {o} on a table or between the hands",
        "a blade or fingertips at the {o}",
    ),
    "repair adjust assemble install break set": (
        "a bent back and busy fingers",
        "the {o} still, partly open or tilted",
        "both hands at a part of the {o}",
    ),
    "watch inspect read check look_obj read_obj": (
        "a turned head and an attentive gaze",
        "the {o} in the line of sight",
        "the eyes fixed on the {o} with a gap between",
    ),
    "hug kiss pet scratch greet": (
        "a body leaning in and an outstretched arm",
        "the {o} close to the chest or the face",
        "the person gently touching the {o}",
    ),
    "feed milk shear groom train teach": (
        "a stooped body and a hand held low",
        "the {o} standing calmly, turned to the person",
        "a hand right at the {o}",
    ),
    "walk run herd chase hunt lasso": (
        "legs in stride",
        "the {o} moving along the ground",
        "the person following or leading the {o}",
    ),
    "drive board exit park sail row fly load": (
        "arms at the controls or at the door",
        "the whole {o}, larger than the person",
        "the person inside or at the side of the {o}",
    ),
    "talk_on text_on type_on control operate talk_on_phone_instr work_on_computer_instr": (
        "a bent elbow and fingers on keys or at the ear",
        "the {o} small or flat before the person",
        "the fingers on the {o}",
    ),
    "wear tie zip": (
        "an upright body with hands near the clothes",
        "the {o} on the body",
        "the {o} fastened to the person",
    ),
    "cook make stir pour fill light": (
        "a lowered gaze and a hand over a worktop",
        "the {o} at waist height",
        "the hand above the {o}",
    ),
    "open pack flush": (
        "an arm stretched to a handle or lid",
        "the {o} open or about to open",
        "a hand at the edge of the {o}",
    ),
    "buy pay sign tag lose": (
        "a hand reaching out with something small in it",
        "the {o} in front of the person",
        "the hand on its way to or from the {o}",
    ),
    "direct point wave": (
        "a raised arm that gives a sign",
        "the {o} at a distance or in the raised hand",
        "the arm extended towards the {o}",
    ),
    NO_INTERACTION: (
        "a relaxed body turned elsewhere",
        "the {o} nearby but unused",
        "a gap between the person and the {o}",
    ),
}
_CUES_OF = {verb: cues for verbs, cues in _CUES.items() for verb in verbs.split()}


@dataclass(frozen=True)
class Vocabulary:
    """Class names and the (object, verb) pairs that form HOI classes, read from the annotation file.

    objects: names with underscores, index = object id; person is one of them.
    verbs: names with underscores, index = verb id.
    hoi_object, hoi_verb: [C] ids of each HOI class.
    """

    objects: tuple[str, ...]
    verbs: tuple[str, ...]
    hoi_object: np.ndarray
    hoi_verb: np.ndarray

    @property
    def num_hois(self) -> int:
        return len(self.hoi_verb)

    @cached_property
    def person(self) -> int:
        """Object id of `person`."""
        if PERSON not in self.objects:
            raise ValueError(f"the vocabulary has no object {PERSON!r}: found {list(self.objects)}")
        return self.objects.index(PERSON)

    @cached_property
    def hoi_of(self) -> np.ndarray:
        """[objects, verbs] HOI id of a combination, -1 where it is no class."""
        table = np.full((len(self.objects), len(self.verbs)), -1, np.int64)
        table[self.hoi_object, self.hoi_verb] = np.arange(self.num_hois)
        return table

    def valid_verbs(self, hois: np.ndarray | None = None) -> np.ndarray:
        """[objects, verbs] bool affordance mask built from `hois` (default: all classes)."""
        hois = np.arange(self.num_hois) if hois is None else np.asarray(hois, np.int64)
        mask = np.zeros((len(self.objects), len(self.verbs)), bool)
        mask[self.hoi_object[hois], self.hoi_verb[hois]] = True
        return mask

    def hoi_name(self, hoi: int) -> str:
        """`verb object`, e.g. `ride bicycle`."""
        return f"{self.verbs[self.hoi_verb[hoi]]} {self.objects[self.hoi_object[hoi]]}".replace("_", " ")

    def hoi_label(self, hoi: int) -> str:
        """`a photo of a person riding a bicycle` by the rule of the published prompts (spec Appendix A)."""
        verb, name = self.verbs[self.hoi_verb[hoi]].replace(" ", "_"), self.objects[self.hoi_object[hoi]]
        phrase = proper_phrase(name) if verb in VCOCO_GERUNDS else noun_phrase(name)
        return f"a photo of a person {gerund(verb)} {phrase}"

    def class_sentences(self) -> list[str]:
        """C prompt sentences as EZ-HOI feeds them to the text tower: `A photo of a person riding a bicycle.`"""
        return [f"A photo of {self.hoi_label(hoi)[11:]}." for hoi in range(self.num_hois)]

    def object_sentences(self) -> list[str]:
        """One `a photo of a bicycle` an object, and a last row `a photo of nothing`."""
        return [f"a photo of {noun_phrase(name)}" for name in self.objects] + ["a photo of nothing"]


def noun_phrase(name: str) -> str:
    """`sports_ball` -> `a sports ball`, by the rule of the published prompts (`umbrella` -> `a umbrella`)."""
    return f"{'an' if name in _AN_OBJECTS else 'a'} {name.replace('_', ' ')}"


def proper_phrase(name: str) -> str:
    """`umbrella` -> `an umbrella`, `skis` -> `a pair of skis`: the noun phrase in good English."""
    return _PROPER_PHRASES.get(name, noun_phrase(name))


def gerund(verb: str) -> str:
    """`sit_on` -> `sitting on`; V-COCO: `hit_instr` or `hit instr` -> `hitting with`."""
    verb = verb.replace(" ", "_")
    for table in (GERUNDS, VCOCO_GERUNDS):
        if verb in table:
            return table[verb]
    raise KeyError(f"verb {verb!r} has no gerund; add it to lib/data/vocabulary.py:GERUNDS")


def verb_cues(verb: str, name: str) -> tuple[str, str, str]:
    """What a photo of the class shows, as noun phrases: the body, the object `name`, where the two are."""
    body, thing, relation = _CUES_OF.get(verb.replace(" ", "_"), _ANY_CUES)
    noun = "other person" if name == PERSON else name.replace("_", " ")
    return body.format(o=noun), thing.format(o=noun), relation.format(o=noun)
