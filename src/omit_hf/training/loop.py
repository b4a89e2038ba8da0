"""The training loop."""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import ProjectConfiguration, broadcast, set_seed
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import CONFIG_NAME

from omit_hf.cards import environment, model_card
from omit_hf.data import ImageTextInputs, cache_states, check_data, load_image_text, shuffle_captions
from omit_hf.evaluation import evaluate_split
from omit_hf.migration import migrate_when_loaded
from omit_hf.modeling import OmitModel, OmitProcessor
from omit_hf.ownership import FolderLock
from omit_hf.training.building import build_augmentation, build_model, use_word_vectors
from omit_hf.training.checkpoints import (
    CARD_FILE,
    TrainingLog,
    begin_output_dir,
    best_folder,
    claim_output_dir,
    load_last_checkpoint,
    on_main_process,
    publish_best,
    record_progress,
    save_checkpoint,
    tidy_output_dir,
    vocabulary_digest,
)
from omit_hf.training.gradient_cache import backward_in_chunks, check_chunks
from omit_hf.training.losses import StepLosses
from omit_hf.training.low_rank import merge_adapters
from omit_hf.training.machine import peak_memory, use_cpu_threads
from omit_hf.training.optimisation import (
    freeze_unreached,
    parameter_groups,
    set_learning_rate,
    unfreeze,
    unfreezing,
)
from omit_hf.training.recipe import Recipe
from omit_hf.training.recipe_files import RECIPE_FILE
from omit_hf.training.records import METRICS_FILE, Progress, read_metrics
from omit_hf.training.sharding import check_sharding, is_sharded, whole_model
from omit_hf.training.streams import PairStream, open_stream, vocabulary_captions
from omit_hf.training.trackers import LOGS, asked_trackers, installed_trackers, log_result, start_trackers
from omit_hf.writing import write_atomically, write_folder


def train(recipe: Recipe) -> dict:
    """Train, validate every epoch, test the best model, and leave a folder that `from_pretrained` loads.

    Several processes of `accelerate launch` share every batch, and the negatives come from all of them. Every process
    holds the lock of the output folder until it ends.

    Args:
        recipe: the experiment.

    Returns:
        The content of `metrics.json`.

    Raises:
        ValueError, OSError: if data, model or output folder do not fit the recipe; before any training.
        BlockingIOError: if another command writes into the output folder.
        OSError: if the disk is full or cannot be written to; a resumed run goes on from the last checkpoint.
        FloatingPointError: if the loss is no longer a number; the last checkpoint is from before.
    """
    recipe.validate()  # again, since fields may have changed after its creation
    if recipe.output_dir is None:
        raise ValueError("output_dir is None; expected a folder for the result.")
    trackers, missing = installed_trackers(asked_trackers(recipe))
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=recipe.seed),
        log_with=trackers or None,
        project_config=ProjectConfiguration(recipe.output_dir, str(Path(recipe.output_dir) / LOGS)),
    )
    for line in missing:
        accelerator.print(line)
    check_sharding(accelerator, recipe)
    use_cpu_threads(accelerator, recipe.cpu_threads)
    lock = FolderLock(recipe.output_dir, "training", accelerator.process_index)
    with contextlib.ExitStack() as ending:  # the last one first
        ending.callback(lock.release)
        ending.callback(accelerator.end_training)
        # The wrapped model before the process group: as its last owner it would wait, with Python's lock held, for
        # threads that need the lock.
        ending.callback(accelerator.free_memory)
        return run(accelerator, recipe, lock)


def run(accelerator: Accelerator, recipe: Recipe, lock: FolderLock) -> dict:
    """Do the work of `train` on every process."""
    folder = Path(recipe.output_dir)
    begun, complete = on_main_process(accelerator, lambda: enter(recipe, folder, lock))
    if folder.is_dir():
        lock.acquire()
    if complete is not None:
        accelerator.print(f"The run in {folder} is complete.")
        return complete

    set_seed(recipe.seed)
    stream = None if recipe.epoch_steps is None else open_stream(recipe)
    used = [*["train"] * (stream is None), "validation", *["test"] * recipe.test]
    data = load_image_text(recipe.data, **{**(recipe.data_options or {}), "only": used})
    check_data(data, used, read_images=recipe.check_images)
    if stream is None:
        data["train"] = shuffle_captions(data["train"], recipe.caption_noise, recipe.seed)
    else:  # what vocabularies are made of
        data["train"] = vocabulary_captions(stream, recipe)
    model, processor = build_model(recipe, data["train"])
    word_vectors = None
    if recipe.word_vectors is not None:
        word_vectors = use_word_vectors(recipe, model, processor)
        accelerator.print("word_vectors: {found} of the vocabulary's {words} words".format(**word_vectors))
    if not is_sharded(accelerator):  # FSDP takes no such weights
        model.vision_encoder.to(memory_format=torch.channels_last)  # makes convolutions faster
    if recipe.cache_states:
        model.to(accelerator.device)
        with accelerator.main_process_first():
            frozen = {"image": recipe.freeze_vision, "text": recipe.freeze_text}
            data = cache_states(model, processor, data, recipe.cache_folder, **frozen)
    augmentation = build_augmentation(recipe, data["train"], processor)
    if stream is None:
        inputs = ImageTextInputs(data["train"], processor, augmentation)
        loader = DataLoader(
            range(len(inputs)),
            batch_size=recipe.batch_size,
            shuffle=True,
            drop_last=True,
            collate_fn=inputs.pairs,
            num_workers=recipe.num_workers,
            generator=torch.Generator(),  # its own, so that starting an epoch draws nothing from the global one
        )
        few = inputs.pairs(range(2))
    else:
        loader = PairStream(stream, processor, recipe, accelerator, augmentation)
        few = loader.first(2)
    freeze_unreached(model.cpu(), few)
    if recipe.mini_batch_size is not None:
        check_chunks(accelerator, model.train())
    stages = unfreezing(model, recipe)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe))
    migrate_when_loaded(model, optimizer)
    trained_parameters = sum(each.numel() for each in model.parameters() if each.requires_grad)
    model, optimizer = accelerator.prepare(model, optimizer)
    if stream is None:
        loader = accelerator.prepare(loader)
    if len(loader) == 0:
        raise ValueError(
            f"{len(inputs)} training pairs make no batch of {recipe.batch_size} for each of "
            f"{accelerator.num_processes} processes; set a smaller batch_size."
        )

    vocabulary = vocabulary_digest(processor.tokenizer)
    if begun:
        progress = load_last_checkpoint(accelerator, folder, vocabulary, recipe.keep_checkpoints)
    else:  # only now, when the recipe has passed every check
        on_main_process(accelerator, lambda: begin(recipe, folder, lock))
        lock.acquire()
        progress = Progress(num_processes=accelerator.num_processes, vocabulary=vocabulary)
    start_trackers(accelerator, recipe)
    log = TrainingLog(folder, progress.step) if accelerator.is_main_process else None

    while True:
        if len(progress.validations) < progress.epoch:  # its checkpoint is there, whatever becomes of the validation
            validate(accelerator, recipe, model, processor, data["validation"], progress)
        if progress.epoch == recipe.num_epochs or stopped(recipe, progress):
            break
        if unfreeze(stages, progress.epoch) and accelerator.num_processes > 1:
            # The distributed wrapper exchanges the gradients of the parameters that had one when it was made.
            raw = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            accelerator.free_memory()
            model, optimizer = accelerator.prepare(raw, optimizer)
            loader = accelerator.prepare(loader) if stream is None else loader
        if augmentation is not None:
            augmentation.epoch = progress.epoch  # before the worker processes get their copy
        train_epoch(accelerator, recipe, model, optimizer, loader, progress, log)
        if progress.batch == 0:  # otherwise it stopped in mid-epoch, and the checkpoint exists
            save_checkpoint(accelerator, folder, progress, recipe.keep_checkpoints)
    if progress.epoch < recipe.num_epochs:
        accelerator.print(f"Stopped at step {progress.step} (max_steps); resume goes on from here.")
        return {"steps": progress.step, "validation": progress.validations[-1:]}

    best, pictures = best_folder(folder, progress), data["validation"]
    on_main_process(accelerator, lambda: publish(best, folder, pictures, accelerator.device))
    test, scores, seconds = None, None, {}
    if recipe.test:
        best = OmitModel.from_pretrained(folder).to(accelerator.device)
        sizes = {"batch_size": recipe.eval_batch_size, "memory_budget": recipe.eval_memory}
        started = time.perf_counter()
        test, scores = evaluate_split(best, processor, data["test"], **sizes, seconds=seconds)
    metrics = {
        "test": test,
        "validation": progress.validations[progress.best_epoch],
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "steps": progress.step,
        "training_seconds": round(progress.seconds, 1),
        "pairs_per_second": round(progress.pairs / progress.seconds, 1),
        "waiting_for_data": round(progress.waiting / progress.seconds, 4),
        "peak_memory": progress.peak_memory,
        "test_seconds": round(time.perf_counter() - started, 1) if recipe.test else None,
        "scoring_seconds": round(seconds["scoring"], 4) if recipe.test else None,  # of it, without the encoding
        "scored_pairs": scores.size if recipe.test else None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_parameters": trained_parameters,
        "word_vectors": word_vectors,
        "splits": {
            split: {"images": len(rows), "captions": sum(map(len, rows["captions"]))}
            for split, rows in data.items()
            if split in used  # of a stream nobody counts
        },
        "recipe": asdict(recipe),
        "environment": environment(accelerator.num_processes, accelerator.device),
    }
    if test is not None:
        log_result(accelerator, progress.step, test, model_card(metrics))
    on_main_process(accelerator, lambda: finish(folder, metrics))
    accelerator.print(
        f"Trained on {metrics['pairs_per_second']:.1f} pairs/s, waiting for data {metrics['waiting_for_data']:.1%} of "
        f"the time; peak memory {metrics['peak_memory'] / 2**30:.2f} GiB "
        f"({'GPU' if accelerator.device.type == 'cuda' else 'process'}). "
        + (f"Test RSUM {test['rsum']:.1f}." if recipe.test else "Not tested.")
    )
    return metrics


def enter(recipe: Recipe, folder: Path, lock: FolderLock) -> tuple[bool, dict | None]:
    """Check and lock the output folder; tell whether its run goes on, and return the metrics of a complete one."""
    claim_output_dir(recipe, lock)
    if not recipe.resume:
        return False, None
    if (folder / METRICS_FILE).is_file():
        tidy_output_dir(folder, recipe.keep_checkpoints)
        return True, read_metrics(folder / METRICS_FILE)
    return (folder / RECIPE_FILE).is_file(), None


def begin(recipe: Recipe, folder: Path, lock: FolderLock) -> None:
    """Make the output folder of a new run, and lock it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    begin_output_dir(recipe)


def train_epoch(accelerator, recipe, model, optimizer, loader, progress: Progress, log: TrainingLog | None) -> None:
    """Train from the point that the progress names to the end of the epoch."""
    model.train()
    loader.set_epoch(progress.epoch)
    if isinstance(loader, PairStream):
        batches = loader.starting_at(progress.batch)
    else:
        batches = accelerator.skip_first_batches(loader, progress.batch) if progress.batch else loader
    negatives = "all" if progress.epoch < recipe.all_negatives_epochs else "hardest"
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    bar = tqdm(
        timed(batches, progress),
        desc=f"Epoch {progress.epoch + 1}/{recipe.num_epochs}",
        total=len(loader),
        initial=progress.batch,
        disable=not accelerator.is_local_main_process,
    )
    losses, started = StepLosses(accelerator), time.perf_counter()
    for batch in bar:
        with accelerator.accumulate(model):
            rate = set_learning_rate(optimizer, recipe, progress.step, progress.epoch)
            if recipe.mini_batch_size is None:
                loss = model(**batch, return_loss=True, negatives=negatives, gather_negatives=True).loss
                accelerator.backward(loss)
            else:
                loss = backward_in_chunks(accelerator, model, batch, recipe.mini_batch_size, negatives)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        progress.batch += 1
        progress.pairs += recipe.batch_size * accelerator.num_processes
        losses.add_batch(loss)
        if not accelerator.sync_gradients:
            continue
        progress.step += 1
        losses.end_step(step=progress.step, epoch=progress.epoch, learning_rate=rate)
        at_checkpoint = progress.step % recipe.checkpoint_steps == 0 or stopped(recipe, progress)
        if at_checkpoint or progress.step % recipe.log_steps == 0:
            log_losses(accelerator, losses, log, bar)
        if at_checkpoint and progress.batch < len(loader):
            progress.seconds, started = progress.seconds + time.perf_counter() - started, time.perf_counter()
            progress.peak_memory = max(progress.peak_memory, peak_memory(accelerator))
            save_checkpoint(accelerator, Path(recipe.output_dir), progress, recipe.keep_checkpoints)
            started = time.perf_counter()
        if stopped(recipe, progress):
            break
    log_losses(accelerator, losses, log, bar)
    progress.seconds += time.perf_counter() - started
    progress.peak_memory = max(progress.peak_memory, peak_memory(accelerator))
    if progress.batch >= len(loader):
        progress.epoch, progress.batch = progress.epoch + 1, 0


def log_losses(accelerator: Accelerator, losses: StepLosses, log: TrainingLog | None, bar: tqdm) -> None:
    """Log the steps since the last time; all processes call.

    Raises:
        FloatingPointError: as `StepLosses.read`; nothing is logged then.
    """
    for values in losses.read():
        accelerator.log({f"train/{name}": values[name] for name in ("loss", "learning_rate")}, step=values["step"])
        if log is not None:
            log.add(**values)
            bar.set_postfix(loss=f"{values['loss']:.4f}")
    if log is not None:
        log.write()


def timed(batches: Iterable, progress: Progress) -> Iterator:
    """Yield the batches, and add the time spent waiting for them to the progress."""
    batches = iter(batches)
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        progress.waiting += time.perf_counter() - started
        if batch is None:
            return
        yield batch


def validate(accelerator, recipe, model, processor, split, progress: Progress) -> None:
    """Measure retrieval on the validation split, save the model if its RSUM is the best yet, and record it."""
    raw = whole_model(accelerator, model)
    # A forward pass begins with the first process's batch-norm statistics; since the last one they have moved apart.
    if accelerator.num_processes > 1:
        for buffer in raw.buffers():
            broadcast(buffer)
    metrics, _ = evaluate_split(
        raw, processor, split, batch_size=recipe.eval_batch_size, memory_budget=recipe.eval_memory
    )
    progress.validations.append(metrics)
    accelerator.log({f"validation/{name}": value for name, value in metrics.items()}, step=progress.step)
    accelerator.print(f"Epoch {progress.epoch}: validation RSUM {metrics['rsum']:.1f}, step {progress.step}")
    folder, better = Path(recipe.output_dir), metrics["rsum"] > progress.best_rsum
    if better:
        progress.best_rsum, progress.best_epoch = metrics["rsum"], progress.epoch - 1
        progress.best_step = progress.step

    def record():
        if better:
            write_folder(best_folder(folder, progress), lambda partial: save_model(raw, processor, partial))
        record_progress(folder, progress, recipe.keep_checkpoints)

    on_main_process(accelerator, record)


def save_model(model: OmitModel, processor: OmitProcessor, folder: Path) -> None:
    merge_adapters(model).save_pretrained(folder)
    processor.save_pretrained(folder)


def publish(best: Path, folder: Path, pictures: Dataset, device: torch.device) -> None:
    """Move the best model to the top of the output folder, with where its cells look in pictures like the first one.

    Whoever serves it without the package cannot measure that.
    """
    if (best / CONFIG_NAME).is_file() and "image" in pictures.column_names:
        model, processor = OmitModel.from_pretrained(best).to(device), OmitProcessor.from_pretrained(best)
        model.fragment_boxes(*processor(images=pictures[0]["image"])["pixel_values"].shape[-2:])
        write_atomically(best / CONFIG_NAME, model.config.to_json_string())
    publish_best(folder, best)


def finish(folder: Path, metrics: dict) -> None:
    """Write the card of the best model and, last of all, the metrics, which complete the run.

    A model that was not tested has no card.
    """
    if metrics["test"] is not None:
        write_atomically(folder / CARD_FILE, model_card(metrics))
    tidy_output_dir(folder, metrics["recipe"]["keep_checkpoints"])
    write_atomically(folder / METRICS_FILE, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")


def stopped(recipe: Recipe, progress: Progress) -> bool:
    return recipe.max_steps is not None and progress.step >= recipe.max_steps
