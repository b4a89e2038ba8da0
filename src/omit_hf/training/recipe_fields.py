"""The fields of a recipe, in groups; each group is one of the command line's help too."""

from dataclasses import dataclass
from typing import Any, Literal

from omit_hf.training.config_fields import OfConfig, option


@dataclass
class DataFields:
    """What is trained on."""

    _argument_group_name = "data"

    data: str = option(
        "scenes",
        "'scenes', the built-in benchmark; a Karpathy JSON file; hub:user/name; or a folder of precomputed regions, "
        "COCO's annotations, image folders, WebDataset archives, cut-outs or parquet files.",
    )
    data_options: dict | str | None = option(
        None, "Options of the data's loader, as JSON on the command line: image_folder, columns, skip_unreadable …"
    )
    check_images: bool = option(False, "Open every image before training begins, besides the checks that cost nothing.")
    num_workers: int = option(0, "Worker processes that load the data; 0 loads in the training process.")
    cache_folder: str = option("~/.cache/omit_hf", "Where the states of frozen backbones are kept.")
    cache_states: bool = option(False, "Run frozen backbones once and train on what they gave, from disk.")
    epoch_steps: int | None = option(
        None,
        "Read the training split as a stream, for data that fit on no disk (hub:, parquet files, WebDataset archives), "
        "and call so many steps an epoch. Validation and test are loaded as ever.",
    )
    shuffle_buffer: int = option(10_000, "Pairs of a stream that are held in memory and drawn from at random.")
    vocabulary_images: int = option(
        10_000, "First images of a stream whose captions make an omit_bigru's vocabulary and that of word_augmentation."
    )
    vocabulary_file: str | None = option(
        None, "In their place: a text file with a caption a line, of which these vocabularies are made."
    )
    word_augmentation: float = option(
        0.0, "Share of the training captions' words that is masked, replaced or deleted (the paper's family: 0.2)."
    )
    caption_noise: float = option(
        0.0,
        "Share of the training captions that is given to other images, by the seed, to see what a model makes of noisy "
        "correspondence; validation and test stay as they are.",
    )
    image_crop: float = option(1.0, "Smallest share of a training image that a random crop keeps; 1 for no crop.")
    image_flip: bool = option(False, "Mirror training images at random; not where captions tell left from right.")


@dataclass
class ModelFields:
    """What is trained."""

    _argument_group_name = "model"

    clip_model: str | None = option(
        None, "Hub id or folder of a CLIP or SigLIP, for both sides; its projections are kept."
    )
    vision_model: str | None = option(None, "Hub id or folder of a pretrained vision backbone.")
    text_model: str | None = option(None, "Hub id or folder of a pretrained text encoder, with its tokenizer.")
    vision_config: dict | str | None = option(
        None, "In its place: configuration of an untrained vision backbone, or of omit_region for precomputed regions."
    )
    text_config: dict | str | None = option(
        None, "In its place: configuration of an omit_bigru; its vocabulary is made from the training captions."
    )
    image_processor: dict | str | None = option(
        None,
        "Image processor of an untrained vision backbone: image_processor_type, size, image_mean … "
        "Of a pretrained one: what to change, such as size.",
    )
    min_word_count: int = option(
        1, "How often a training caption's word must occur to be in an omit_bigru's vocabulary."
    )
    word_vectors: str | None = option(
        None, "GloVe, word2vec or fastText text file that an omit_bigru's word embeddings start from."
    )
    freeze_vision: bool = option(False, "Do not train the vision backbone.")
    freeze_text: bool = option(False, "Do not train the text backbone.")
    freeze_batch_norm: bool = option(False, "Keep the batch-norm statistics of the vision backbone as they are.")
    unfreeze_epochs: list[int] = option(
        [],
        "Epochs, from 0, from which the vision backbone's last stage, the one before it … are trained; a stage beyond "
        "the list stays frozen. Empty to train all from the start.",
    )
    lora: dict | str | None = option(
        None,
        "Train small matrices beside the layers of the backbones, which stay as they are (peft): side (vision, text or "
        "both), r, alpha, target_modules, dropout. The result has them merged.",
    )
    projection_dim: Any = OfConfig()
    matching: Any = OfConfig()
    regularization: Any = OfConfig()
    num_iterations: Any = OfConfig()
    dustbin: Any = OfConfig()
    marginals: Any = OfConfig()
    score: Any = OfConfig()
    global_weight: Any = OfConfig()
    backend: Any = OfConfig()
    text_pooling: Any = OfConfig("By default what the tokenizer suggests (CLS, else EOS, else the mean).")


@dataclass
class LossFields:
    """What training lowers."""

    _argument_group_name = "loss"

    loss: Any = OfConfig()
    margin: Any = OfConfig()
    all_negatives_epochs: int = option(1, "Epochs of the triplet loss over all negatives, before the hardest alone.")
    logit_scale_init_value: Any = OfConfig()


@dataclass
class OptimisationFields:
    """How it is lowered."""

    _argument_group_name = "optimisation"

    num_epochs: int = option(25, "Epochs; one passes over every caption.")
    batch_size: int = option(128, "Pairs a batch, on each process.")
    mini_batch_size: int | None = option(
        None,
        "Pairs that are encoded at once, so that a large batch, all of whose pairs are negatives of each other, fits "
        "into memory (GradCache); each step costs one more forward pass. By default the whole batch.",
    )
    gradient_accumulation_steps: int = option(1, "Batches whose gradients are added up for a step.")
    learning_rate: float = option(5e-4, "Peak learning rate of AdamW.")
    vision_lr_factor: float = option(1.0, "Factor on it for the vision backbone (the paper's family takes 0.01).")
    text_lr_factor: float = option(1.0, "Factor on it for the text backbone (the paper's family takes 0.1).")
    weight_decay: float = option(1e-4, "Weight decay, but not of biases, norms and other vectors.")
    warmup_steps: int = option(0, "Steps of linear warm-up.")
    decay_epochs: list[int] = option([], "Epochs from which the learning rate is lower by decay_factor once more.")
    decay_factor: float = option(0.1, "What the learning rate is multiplied with at each of decay_epochs.")
    max_grad_norm: float = option(2.0, "The gradient is scaled down to this norm.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "Autocast of the encoders (transport is always float32); by default what accelerate is configured for."
    )


@dataclass
class RunFields:
    """What a run leaves, and where."""

    _argument_group_name = "run"

    output_dir: str | None = option(None, "Folder of the result; outputs/<name of the recipe file> by default.")
    overwrite_output_dir: bool = option(False, "Delete the run that the folder holds, once the new one can begin.")
    resume: bool = option(False, "Go on from the folder's last checkpoint.")
    seed: int = option(0, "Seed of weights, data order and dropout.")
    max_steps: int | None = option(
        None, "Stop after so many steps, for a trial; the schedule stays that of num_epochs."
    )
    checkpoint_steps: int = option(500, "Steps between checkpoints; the end of an epoch makes one as well.")
    keep_checkpoints: int = option(2, "How many of the last checkpoints to keep.")
    test: bool = option(True, "Test the best model at the end; off where settings are chosen, on validation alone.")
    log_steps: int = option(
        10, "Steps between writes to the logs, which have every step; a loss that is no number is found then."
    )
    report_to: list[str] | str | None = option(
        None,
        "Trackers that follow the run: tensorboard (in <output_dir>/logs; the default), trackio, wandb, mlflow and "
        "others of Accelerate; all that are installed, or none.",
    )
    project: str = option("omit-hf", "Project, or experiment, of the run in the trackers.")
    run_name: str | None = option(None, "Name of the run in the trackers; that of output_dir by default.")
    tensorboard: bool = option(True, "Of older recipes: false is report_to: none.")
    eval_batch_size: int = option(128, "Images or captions encoded at once in evaluation.")
    eval_memory: int = option(2**26, "Bytes for the intermediate results of scoring a tile of pairs.")
    cpu_threads: int = option(0, "Threads of each process on a CPU; 0 shares the cores out among the processes.")
