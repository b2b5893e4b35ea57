"""Every setting with its default; the comment beside a field is its help (`python -m lib.config` prints all)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class WorldSettings:
    """The embedded stick world, rendered when data.root is empty."""

    seed: int = 0  # seeds every scene
    train_images: int = 1600  # images of the training split
    test_images: int = 500  # images of the test split
    width: int = 160  # pixels
    height: int = 128  # pixels


@dataclass
class DataSettings:
    """Annotations and images in HICO-DET's layout."""

    root: str = ""  # folder of instances_{train,test}2015.json; empty = render the stick world into the run
    images: str = ""  # image folder below root, may hold {split}; empty = the data set's own layout
    zero_shot: str = "unseen_verb"  # default | unseen_verb | unseen_object | rare_first | non_rare_first | uc0-4
    zero_shot_filter: str = "row"  # what goes from training: row (of an unseen class) | pair (with any unseen label)
    kind: str = "hico"  # hico | vcoco (any form in root) | hico_json | hico_mat | hoia | vcoco_json | vcoco_gupta
    descriptions: str = ""  # description file of the HOI classes; empty = written from a template
    differences: str = ""  # file of unseen-seen pairs with difference texts; empty = nearest seen class, template
    act_descriptors: str = ""  # file of action descriptors; needed by ezhoi.act_descriptors
    validation_images: int = 0  # last n training images kept from EZ-HOI to fit what sits on top of it
    train_limit: int = 0  # use the first n training images; 0 = all
    test_limit: int = 0  # use the first n test images; 0 = all
    world: WorldSettings = field(default_factory=WorldSettings)


@dataclass
class ClipSettings:
    """The frozen vision-language model."""

    source: str = ""  # local-dir:<folder> | random:<open_clip name>; empty = the run's tiny CLIP
    batch_size: int = 128  # images a forward in feature extraction


@dataclass
class DetectorTrainSettings:
    """Training of a DETR on the boxes of the training split (python -m lib.stages.train_detector)."""

    epochs: int = 10  # passes over the images with a pair
    batch_size: int = 4  # images a step, over all processes
    lr: float = 1e-4  # AdamW: transformer and heads
    lr_backbone: float = 1e-5  # AdamW: stages of the backbone that train
    lr_step: int = 8  # epochs until lr x 0.1
    weight_decay: float = 1e-4  # on every parameter
    clip_norm: float = 0.1  # global gradient norm
    augment: str = "detr"  # none | flip | detr (flip, sizes, crops); a small DETR with learned positions wants flip
    precision: str = "fp32"  # fp32 | bf16 (autocast)
    workers: int = 0  # data loading processes
    log_every: int = 10  # steps between two lines of the loss history


@dataclass
class DetectorSettings:
    """DETR and the region proposal rule (spec ez-hoi.md §1.4)."""

    source: str = ""  # folder of a DETR | oracle | oracle_jittered | json:<folder with {split}>; empty = the tiny DETR
    labels: str = "coco80"  # json: what its labels mean: coco80 | coco91 | hico (alphabetical) | annotations
    frame: str = "auto"  # json: whose pixels its boxes are in: auto | original | resized (by the size in each file)
    jitter: float = 0.1  # oracle_jittered: every edge moves by up to this share of the side
    resample: str = "bicubic"  # bicubic (EZ-HOI) | bilinear (UPT)
    batch_size: int = 1  # images of equal size a forward; padding would change results
    nms_iou: float = 0.5  # class-wise NMS
    score_threshold: float = 0.2  # a box counts as strong from this score
    min_instances: int = 3  # at least the best 3 humans and 3 objects, whatever their score
    max_instances: int = 15  # at most this many humans and as many objects
    train: DetectorTrainSettings = field(default_factory=DetectorTrainSettings)


@dataclass
class FeatureSettings:
    """Sharded store of CLIP patch tokens."""

    source: str = ""  # folder of finished stores train/ and test/ made elsewhere; empty = extract into the run
    shard_size: int = 0  # images a shard; 0 = about 200 MB a shard (1,024 images of ViT-B/16, 256 of ViT-L/14@336px)
    decode: str = "exact"  # exact (PIL, as the published features) | fast (torchvision, a grey level off)
    precision: str = "fp32"  # fp32 | bf16 (autocast, tokens 1 % off)
    dtype: str = "float16"  # numbers on disk: float16 | float32
    workers: int = -1  # processes that decode ahead of the model; -1 = none on a CPU, the free cores beside a GPU
    preload: bool = False  # read a whole store into shared memory before it is used
    strict: bool = True  # a broken image stops the extraction; false: zero record, line in errors.jsonl


@dataclass
class EzHoiSettings:
    """EZ-HOI (spec ez-hoi.md §2-§6); the defaults are the published recipe, `preset` names common variants of it."""

    preset: str = ""  # released | prefix | prefix_unseen | text_adapter: settings applied below the file's own

    # what is scored
    classes: str = "verb"  # verb (117 of HICO-DET, 24 of V-COCO) | hoi (every HOI class with a logit of its own)
    class_rows: str = "selected"  # sentences behind the verbs: selected (the public rule) | all
    regions: str = "HO"  # --logits_type: HO (published) | HO+U | U (union box alone, no fusion MLP)

    # vision side
    instance_adapters: str = "all"  # layers with an instance adapter: all | front | end | last | none
    adapter_gain_init: float = 1e-9  # start of the instance adapters' gain (quirk Q7)
    prior: str = "cbe"  # prior tokens: confidence, box, embedding of the label; drop letters to drop parts
    prompt_length: int = 2  # N_CTX
    prompt_depth: int = 9  # tune_LY, cut to the number of layers
    image_prompts: bool = True  # --img_clip_pt: visual prompts look at the image's CLIP patch tokens
    round_prompts: bool = False  # visual prompts rounded to fp16 as the released program does (quirk Q5)
    pair_adapter: bool = True  # --img_align: attention over all pairs of an image
    roi_dropout: float = 0.2  # dropout on the 7 x 7 RoIAlign maps

    # text side
    text_prompts: str = "off"  # off (constant text, as released) | prefix (live, seen by the class text)
    unseen_prompts: bool = True  # --unseen_pt_inj: unseen classes learn from a related seen class; adds its row
    text_adapter: bool = False  # --txt_align: adapter behind the text tower
    act_descriptors: bool = False  # --act_descriptor: text features attend to data.act_descriptors
    semantic_weight: float = 150.0  # weight of the semantic relation loss, used while the text is live; 0 = off

    # loss
    alpha: float = 0.5  # focal loss: weight of positives against negatives
    gamma: float = 0.2  # focal loss: exponent

    # training
    init_from: str = ""  # weights to start from (an ezhoi folder of a run or an imported checkpoint)
    epochs: int = 12  # passes over the training images; 0 keeps the weights of init_from: evaluate only
    batch_size: int = 8  # images a step
    accumulate: int = 1  # steps' batches gathered before the weights move
    lr_vit: float = 1e-3  # AdamW: prompts and instance adapters
    lr_head: float = 1e-3  # AdamW: everything else
    weight_decay: float = 1e-4  # on every parameter
    lr_step: int = 10  # epochs until lr x 0.1
    clip_norm: float = 0.1  # global gradient norm
    ema: float = 0.0  # decay of averaged weights, which are then the result; 0 = off
    precision: str = "fp32"  # fp32 | bf16 (autocast)
    detections: str = "cached"  # cached | live (DETR runs on every augmented image, as in the public program)
    detector_dropout: bool = False  # DETR's dropout stays on while detecting live (quirk Q8)
    flip: float = 0.5  # probability of a left-right flip
    jitter: float = 0.4  # brightness, contrast, saturation
    crop: float = 0.5  # probability of a random crop
    workers: int = 0  # data loading processes
    log_every: int = 10  # steps between two lines of the loss history

    # a bridge inside training
    bridge: str = ""  # bridge that pair features pass in training: a folder | captions (trained first); empty = none
    bridge_grad: str = "straight_through"  # none (as the public fork: only the scale learns) | straight_through | full
    bridge_steps: list[int] = field(default_factory=list)  # its evaluations in epoch 1, 2, ...; the last one repeats
    bridge_eval: str = "same"  # the bridge in evaluation: same (as in training) | none | folder of another one

    # inference
    prior_power: float = 2.8  # hyper_lambda, power of the detector scores in evaluation (1 in training)


PRESETS: dict[str, dict[str, Any]] = {
    "": {},
    # what the public program computes, to the rounding of its prompts
    "released": {"text_prompts": "off", "round_prompts": True, "text_adapter": False, "act_descriptors": False},
    # class prompts that the class embedding sees
    "prefix": {"text_prompts": "prefix", "unseen_prompts": False, "semantic_weight": 150.0},
    # and unseen classes that learn theirs from a related seen class
    "prefix_unseen": {"text_prompts": "prefix", "unseen_prompts": True, "semantic_weight": 150.0},
    # constant prompts, but an adapter behind the text tower
    "text_adapter": {"text_prompts": "off", "text_adapter": True, "semantic_weight": 150.0},
}


# the ways in which a bridge and EZ-HOI training meet, by name (docs/bridge.md)
_CAPTION_BRIDGE = {"preset": "released", "bridge": "captions", "bridge_grad": "straight_through"}
STRATEGIES: dict[str, dict[str, Any]] = {
    "": {},
    # the bridge is trained last, on the text as EZ-HOI left it
    "evaluate_with": {"ezhoi": {"bridge": "", "bridge_eval": "same"}},
    # the bridge of captions first, EZ-HOI trained around it
    "train_with": {"ezhoi": _CAPTION_BRIDGE},
    # as published: 600 evaluations, text mean off vision, and nothing but the scale learns through it
    "train_with_public": {
        "ezhoi": _CAPTION_BRIDGE | {"bridge_grad": "none"},
        "bridge": {"center": "text", "solver": "public", "entry_step": 600, "num_steps": 600},
    },
    # trained around the bridge, evaluated without
    "evaluate_without": {"ezhoi": _CAPTION_BRIDGE | {"bridge_eval": "none"}},
    # a trained baseline (ezhoi.init_from) trained on for three epochs around the bridge
    "fine_tune": {"ezhoi": _CAPTION_BRIDGE | {"epochs": 3, "lr_vit": 1e-5, "lr_head": 1e-5}},
    # more evaluations in later epochs
    "growing_steps": {"ezhoi": _CAPTION_BRIDGE | {"bridge_steps": [3, 3, 3, 3, 3, 3, 6]}},
    # an exact gradient through few evaluations
    "exact_gradient": {"ezhoi": _CAPTION_BRIDGE | {"bridge_grad": "full"}, "bridge": {"num_steps": 5}},
}


DEFR_VARIANTS = ("language_sign", "language_bce", "random_sign", "random_bce")


@dataclass
class DefrSettings:
    """DEFR, recognition of HOIs in whole images (spec defr.md §2-§8); the defaults are the published CLIP recipe."""

    # model
    backbone: str = "clip"  # clip (the tower of clip.source) | a ViT of timm, vit_base_patch32_224.augreg_in21k
    weights: str = ""  # local weights file of a timm backbone; empty = random
    other_backbone: str = ""  # backbone of the variants named other_..., for the comparison of two
    other_weights: str = ""  # its weights file
    image_size: int = 672  # side of the square input, a multiple of the patch size
    head: str = "clip"  # rand | clip | bert | simcse, each also -linear; rand-512, *-shuffle, i-clip, i-bert
    log_scale: float = 4.61  # logarithm of the logit scale; 0 = 1, and features are not normalised
    log_scale_trainable: bool = False  # the scale learns, held below log_scale_max
    log_scale_max: float = 4.61  # upper bound of a trainable log_scale

    # language rows of the head
    embeddings: str = ""  # file of class embeddings (.safetensors, or classifier_weights_*); empty = computed
    text_model: str = ""  # folder of a transformers BERT or SimCSE, for the heads of that name
    sentences: str = ""  # empty = a person riding a bicycle | base_form (published: ride the) | JSON file by class

    # loss
    loss: str = "sign"  # sign (LSE-Sign) | bce | wbce (weighted BCE) | focal
    focal_alpha: float = 0.25  # focal loss: weight of positives against negatives
    focal_gamma: float = 2.0  # focal loss: exponent
    ignore_ambiguous: bool = False  # LSE-Sign: ambiguous labels leave the sum; published: they are negatives

    # data
    labels: str = ""  # image-level labels (HICO's anno.mat or our .npz); empty = from the annotated pairs
    images: int = 0  # use the first n labelled training images; 0 = all
    teacher: str = ""  # writes the training labels in place of people: clip | folder of a captioner; empty = none
    teacher_temperature: float = 1.0  # softmax over classes on every region
    teacher_quantile: float = 0.95  # positive: among this share of surest images of its class, ...
    teacher_top: int = 3  # ... and among so many surest classes of the image
    teacher_band: float = 0.85  # unsure (see ignore_ambiguous): from this quantile on, but not positive
    teacher_unions: int = 4  # boxes around detected pairs a picture, beside the whole and its quarters
    min_samples: int = 40  # images of rarer classes are repeated until they would have this many; 1 = off
    flip: float = 0.5  # probability of a left-right flip
    jitter: float = 0.4  # brightness, contrast
    crop: float = 0.7  # smallest area share of the random crop; 1 = no crop
    workers: int = 0  # data loading processes

    # training
    epochs: int = 10  # passes over the repeated images; a multiple of restart_epochs ends at a learning rate near 0
    restart_epochs: int = 5  # period of the cosine with warm restarts; evaluation and checkpoint at its ends
    batch_size: int = 128  # images a step over all processes; published: 128, and 32 for patch 16
    lr: float = 1.5e-5  # AdamW (.9, .999), no weight decay
    precision: str = "fp32"  # fp32 (published) | bf16 (autocast in the tower)
    log_every: int = 10  # steps between two lines of the loss history
    variants: list[str] = field(default_factory=lambda: list(DEFR_VARIANTS))  # compared: [other_]start_loss, or own

    # detection without training (§11)
    mask_mode: str = "block"  # block | released (+1 on hidden cells, as the public program) | none
    mask_layers: int = 1  # last blocks whose class token sees the boxes alone
    prior_power: float = 2.8  # power of the detector scores in a pair score
    rescore: list[float] = field(default_factory=lambda: [6.0, 3.0, 1.0])  # powers of human, object, interaction


@dataclass
class TextBankSettings:
    """Texts whose embeddings the bridge learns."""

    captions: str = ""  # COCO captions JSON or sentence list; empty = the stick world's captions
    max_texts: int = 0  # use the first n distinct captions; 0 = all
    template: str = "{}"  # wraps every sentence before the tokenizer; part of the text space id
    templates: list[str] = field(default_factory=list)  # prompt ensemble in place of template; features are averaged


@dataclass
class BridgeSettings:
    """How the denoiser is trained and how the bridge is walked (spec diffusion-bridge.md §3.3, §8.2, §11)."""

    # geometry
    center: str = "own"  # mean taken off vision features: own (their own) | text (as the fork does) | none
    scale: float = 5.0  # radius c of the sphere, > 0; 5·sqrt(D/512) keeps the noise schedule of D = 512

    # denoiser
    denoiser: str = "mlp"  # mlp (preconditioned residual MLP) | unet1d (the public network, 25x dearer)
    width: int = 1024  # hidden width of the mlp, >= 2; twice the embedding dimension is a good start
    depth: int = 3  # residual blocks of the mlp, >= 1
    variant: str = "sphere"  # states it learns: sphere (direction only, the public recipe) | vp (with their length)

    # training
    steps: int = 20_000  # optimiser steps, >= 1
    batch: int = 512  # rows a step, >= 1
    lr: float = 1e-3  # peak learning rate of Adam (.9, .99); the public U-Net recipe: 8e-5
    lr_decay: str = "cosine"  # cosine (to zero at `steps`) | constant (the public recipe)
    ema: float = 0.995  # decay of the averaged weights, 0 (no averaging) to below 1; updated every 10 steps
    held_out: float = 0.02  # share of distinct texts kept for the validation loss, 0 (none) to below 1
    log_every: int = 100  # steps between two lines of the loss history
    validate_every: int = 1000  # steps between two validation losses and checkpoints
    precision: str = "float32"  # arithmetic of the network in training: float32 | bfloat16 (weights stay float32)
    student_pairs: int = 50_000  # inputs walked by the teacher for a one-evaluation student, >= 2

    # walking the bridge: entry depth and number of evaluations are two different things (§4.2)
    entry_step: int = 600  # M: the feature enters as the state of timestep M-1; 1 to 1000; 50-100 changes least
    num_steps: int = 12  # S: network evaluations, 1 to entry_step; 6 do for an entry_step of 300 or less
    solver: str = "sphere_pc"  # sphere_pc | sphere_2m | reference | public | dpm_2m | ddim | student (see samplers.py)
    last_step: int = 20  # last timestep that sphere_pc, sphere_2m and dpm_2m evaluate; 5 for 16 evaluations or more
    walk_precision: str = "float32"  # arithmetic of the network when walked: float32 | bfloat16 (cosine 0.9999 to it)

    # use in a detector
    allow_text_space_mismatch: bool = False  # true runs a bridge of another text space on purpose ("wrong order")


@dataclass
class EvaluationSettings:
    """What notebook 04 compares."""

    entry_steps: list[int] = field(default_factory=lambda: [50, 100, 300, 600])  # depths tried with the default budget
    step_budgets: list[int] = field(default_factory=lambda: [1, 2, 6, 20])  # numbers of evaluations tried
    centers: list[str] = field(default_factory=lambda: ["own", "text", "none"])  # of the grid on validation pairs
    scales: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])  # of the grid: radius walked / radius learnt
    ensemble: float = 0.7  # share of the bridge in the fixed ensemble, 0 to 1
    bootstrap: int = 1000  # draws of the test images behind every 95 % interval of an mAP
    fit_images: int = 600  # training images that fit the blend where data.validation_images is 0


@dataclass
class AnalysisSettings:
    """What is measured and drawn, and with how many points (OmegaConf-compatible types only)."""

    images: str = "test"  # images whose labelled pairs are looked at: test | fit | train
    max_pairs: int = 2000  # pairs kept in the embeddings table, drawn with `seed`; the same pairs in every state
    raw: bool = True  # also keep frozen CLIP on the same regions, as the state raw
    top: int = 5  # predictions and neighbours kept with every point
    metric_pairs: int = 2000  # pairs the gap metrics are computed from, at most
    methods: list[str] = field(default_factory=lambda: ["gap", "pca", "tsne", "umap"])  # also: aligned_umap
    projection_pairs: int = 2000  # pairs t-SNE and UMAP are fitted on; the others are placed into the finished map
    tsne_states: list[str] = field(default_factory=lambda: ["raw", "adapted", "centred"])  # others are placed
    trajectory_pairs: int = 300  # pairs whose way through the bridge is kept step by step
    perplexity: float = 30.0  # t-SNE: effective number of neighbours of a point
    neighbours: int = 15  # UMAP: neighbours that define local structure
    knn: int = 10  # neighbours in the modality purity and in the preservation of neighbours
    slices: int = 64  # directions of the sliced Wasserstein distance
    folds: int = 5  # cross-validation folds of the linear separability
    bootstrap: int = 300  # resamples behind every 95 % interval; 0 leaves the intervals out
    seed: int = 0  # seeds the choice of pairs, the resamples and the projections


@dataclass
class LaunchSettings:
    """Processes behind extraction, training and prediction; results do not depend on their number (docs/cluster.md)."""

    processes: int = 1  # processes on this machine; 0 = one a GPU
    nodes: int = 1  # machines; every one runs the same command
    rendezvous: str = ""  # host:port on one of the machines, where they meet; empty = this machine, a free port
    id: str = "hoi"  # name of this launch, the same on every machine
    max_restarts: int = 0  # restarts of all processes, from the last checkpoint, after one was lost
    backend: str = "auto"  # auto (nccl on GPUs, gloo on CPUs) | nccl | gloo
    timeout_minutes: float = 60.0  # a process that waits longer than this for another one gives up


@dataclass
class CheckpointSettings:
    """What training keeps to go on after a kill, and which epoch is its result."""

    keep: int = 2  # newest checkpoints kept, >= 1; one that cannot be read gives way to the one before
    steps: int = 0  # steps between two checkpoints inside an epoch; 0 = at its end only
    ezhoi: str = ""  # result of EZ-HOI: empty = last epoch | loss | mAP_seen (on data.validation_images), the best one
    defr: str = ""  # result of DEFR: empty = last epoch | loss | a score of its test images, such as mAP_full


@dataclass
class TrackingSettings:
    """Where numbers go beside the JSON lines of every run (docs/long_runs.md)."""

    backends: list[str] = field(default_factory=list)  # any of tensorboard, trackio, wandb; each an optional extra
    project: str = "hoi"  # the project that holds the run in trackio and wandb
    folder: str = ""  # where they write; empty = tracking in the run folder, which keeps the run in one place
    online: bool = False  # wandb alone: true sends to its server, false writes files for wandb sync


@dataclass
class Config:
    """The whole tree."""

    strategy: str = ""  # how a bridge and EZ-HOI training meet; see STRATEGIES, applied below the file's own keys
    seed: int = 0  # seeds every random stream of every stage
    device: str = "auto"  # auto | cpu | cuda | cuda:1
    threads: int = 0  # CPU threads of torch; 0 = torch's own choice
    compile: str = ""  # torch.compile: empty (off) | default | reduce-overhead (with CUDA graphs) | max-autotune
    data: DataSettings = field(default_factory=DataSettings)
    clip: ClipSettings = field(default_factory=ClipSettings)
    detector: DetectorSettings = field(default_factory=DetectorSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    ezhoi: EzHoiSettings = field(default_factory=EzHoiSettings)
    defr: DefrSettings = field(default_factory=DefrSettings)
    text_bank: TextBankSettings = field(default_factory=TextBankSettings)
    bridge: BridgeSettings = field(default_factory=BridgeSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    analysis: AnalysisSettings = field(default_factory=AnalysisSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    launch: LaunchSettings = field(default_factory=LaunchSettings)
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
