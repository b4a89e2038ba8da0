"""A model as mteb asks for it: `SearchProtocol` for retrieval, `EncoderProtocol` for pairs of images and captions."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from mteb._create_dataloaders import create_dataloader
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from torch import Tensor
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from omit_hf.digests import model_digest
from omit_hf.modeling import OmitFeatures, OmitModel, OmitProcessor
from omit_hf.modeling.backbones_omit import fit_tokenizer
from omit_hf.mteb.embeddings import EncodedItems, FragmentEmbeddings, items_similarity
from omit_hf.parsing import shown

BATCH_SIZE = 32  # mteb's own
SIDES = ("image", "text")


class OmitForMteb:
    """A model for `mteb.evaluate`, with its own scores: no vector stands in for them.

    Retrieval keeps the queries' features in memory and reads the corpus in chunks, of which it keeps the best documents
    alone. Tasks that multiply vectors themselves get [`FragmentEmbeddings`], whose product is the score.

    Example:
        >>> import mteb
        >>> from omit_hf.mteb import OmitForMteb
        >>> tasks = mteb.get_tasks(["Flickr30kI2TRetrieval", "Flickr30kT2IRetrieval", "Winoground"])
        >>> result = mteb.evaluate(OmitForMteb("outputs/scenes"), tasks)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: OmitModel | str | Path,
        revision: str | None = None,
        *,
        processor: OmitProcessor | None = None,
        name: str | None = None,
        device: str | torch.device | None = None,
        corpus_chunk_size: int = 4096,
    ):
        """
        Args:
            model: Hub id, folder, or a loaded model; switched to evaluation mode.
            revision: commit or branch on the Hub, for a Hub id.
            processor: the model's; loaded from the same place if None.
            name: `organisation/model`, by which mteb files the results; by default the Hub id, or `local/folder`.
            device: where the model runs; by default a GPU if there is one, or where the loaded model is.
            corpus_chunk_size: documents whose features are in memory at once.

        Raises:
            ValueError: for a model without its processor, one that takes precomputed regions, a name without a `/`, or
                a chunk size below 1.
            OSError: if the model cannot be loaded.
        """
        if corpus_chunk_size < 1:
            raise ValueError(f"corpus_chunk_size is {corpus_chunk_size}; expected at least 1.")
        if name is not None and "/" not in name:
            raise ValueError(f"name is {name!r}; expected organisation/model, as in 'me/{name}'.")
        source = commit = None
        if isinstance(model, str | Path):
            source, revision = str(model), revision or "main"
            if not Path(source).expanduser().is_dir():  # from here on that commit, whatever is pushed meanwhile
                commit = extract_commit_hash(cached_file(source, CONFIG_NAME, revision=revision), None)
            model = OmitModel.from_pretrained(source, revision=commit or revision)
            processor = processor or OmitProcessor.from_pretrained(source, revision=commit or revision)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        elif not hasattr(model, "matching"):
            raise ValueError(f"The model is {shown(model)}; expected an OmitModel, its folder or its Hub id.")
        if processor is None:
            raise ValueError(
                "A model is given without its processor; expected OmitForMteb(model, processor=processor)."
            )
        if "pixel_values" not in model.vision_encoder.input_names:
            kind = model.config.vision_config.model_type
            raise ValueError(
                f"The image encoder is {kind!r}; expected one of pictures, which is what mteb's tasks have."
            )
        fit_tokenizer(model.text_encoder.backbone, processor.tokenizer)
        self.model = (model if device is None else model.to(device)).eval()
        self.processor = processor
        self.corpus_chunk_size = corpus_chunk_size
        self.mteb_model_meta = self._meta(source, commit, name)
        self._corpus = None

    def index(self, corpus, *, task_metadata, hf_split, hf_subset, encode_kwargs, num_proc=None, **kwargs) -> None:
        """Remember the corpus, which `search` encodes in chunks."""
        self._corpus = corpus

    @torch.inference_mode()
    def search(
        self,
        queries,
        *,
        task_metadata,
        hf_split,
        hf_subset,
        top_k,
        encode_kwargs,
        top_ranked=None,
        num_proc=None,
        **kwargs,
    ) -> dict[str, dict[str, float]]:
        """Find the `top_k` best documents of every query, exactly; of `top_ranked` alone, where it is given.

        Raises:
            RuntimeError: before `index`.
            ValueError: for queries or documents that are both pictures and text, or a score that is NaN.
        """
        if self._corpus is None:
            raise RuntimeError("search is called before index; expected index(corpus, …) first.")
        size = encode_kwargs.get("batch_size", BATCH_SIZE)
        options = {"task_metadata": task_metadata, "batch_size": size, "num_proc": num_proc}
        asked = list(self._encoded(create_dataloader(queries, prompt_type=PromptType.query, **options), size))
        documents = self._encoded(create_dataloader(self._corpus, prompt_type=PromptType.document, **options), size)
        names, document_names = list(queries["id"]), list(self._corpus["id"])
        wanted = None if top_ranked is None else _places(top_ranked, names, document_names)
        best: list[tuple[Tensor, Tensor]] = []
        for chunk_number, chunk in enumerate(_chunks(documents, max(1, self.corpus_chunk_size // size))):
            first = chunk_number * max(1, self.corpus_chunk_size // size) * size
            for number, (side, query) in enumerate(asked):
                each = [items_similarity(self.model, side, query, other, batch) for other, batch in chunk]
                scores = torch.cat(each, dim=1).cpu()
                if wanted is not None:
                    for row, places in enumerate(wanted[number * size : number * size + len(scores)]):
                        own = [place - first for place in places if first <= place < first + scores.shape[1]]
                        kept = torch.zeros(scores.shape[1], dtype=torch.bool)
                        kept[own] = True
                        scores[row, ~kept] = -torch.inf
                found = scores, torch.arange(first, first + scores.shape[1]).expand_as(scores)
                if chunk_number:
                    found = tuple(torch.cat(parts, dim=1) for parts in zip(best[number], found, strict=True))
                values, places = found[0].topk(min(top_k, found[0].shape[1]))
                best[number : number + 1] = [(values, found[1].gather(1, places))]
        rows = (row for values, places in best for row in zip(values.tolist(), places.tolist(), strict=True))
        return {
            name: {document_names[place]: score for score, place in zip(*row, strict=True) if score > -torch.inf}
            for name, row in zip(names, rows, strict=True)
        }

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **kwargs) -> FragmentEmbeddings:
        """Encode pictures or texts; their products are the model's scores. Features wait in main memory."""
        return self.encode_items(inputs, kwargs.get("batch_size", BATCH_SIZE))

    @torch.inference_mode()
    def encode_items(self, batches: Iterable[dict], batch_size: int = BATCH_SIZE) -> FragmentEmbeddings:
        """Encode batches `{"image": [pictures]}` or `{"text": [texts]}`, of any sizes.

        Raises:
            ValueError: for batches of both, or none at all.
        """
        encoded = list(self._encoded(batches, batch_size))
        if not encoded:
            raise ValueError("There is nothing to encode; expected at least one picture or text.")
        batches = [OmitFeatures(**{name: each.cpu() for name, each in features.items()}) for _, features in encoded]
        return FragmentEmbeddings.of(EncodedItems(self.model, encoded[0][0], batches))

    def similarity(self, embeddings1: FragmentEmbeddings, embeddings2: FragmentEmbeddings) -> Tensor:
        """The score of every item and every other, float32 [N, M]."""
        return embeddings1 @ embeddings2.T

    def similarity_pairwise(self, embeddings1: FragmentEmbeddings, embeddings2: FragmentEmbeddings) -> Tensor:
        """The score of every item and the other of its number, float32 [N]."""
        if len(embeddings1) != len(embeddings2):
            raise ValueError(f"There are {len(embeddings1)} items and {len(embeddings2)} others; expected as many.")
        return torch.cat([(one[None] @ other[None].T)[0] for one, other in zip(embeddings1, embeddings2, strict=True)])

    def _encoded(self, loader: Iterable[dict], size: int) -> Iterator[tuple[str, OmitFeatures]]:
        """The side and the features of `size` items at a time, of batches of any size."""
        for side, items in _batches(loader, size):
            inputs = self.processor(**{"images" if side == "image" else "text": items})
            inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
            encode = self.model.get_image_features if side == "image" else self.model.get_text_features
            yield side, encode(**inputs).select(slice(None))

    def _meta(self, source: str | None, commit: str | None, name: str | None) -> ModelMeta:
        """What is known. The revision tells weights apart, since mteb keeps results by name and revision."""
        model, processor, config = self.model, self.processor, self.model.config
        folder = Path(source or model.name_or_path or "unnamed").expanduser().absolute().name
        weights = [*model.parameters(), *model.buffers()]
        limit = processor.tokenizer.model_max_length
        pools = config.matching in ("mean", "gpo")
        return ModelMeta(
            loader=None if commit is None else type(self),
            name=name or (source if commit is not None and "/" in source else f"local/{folder}"),
            revision=commit or model_digest(model, [processor.image_processor, processor.tokenizer]),
            release_date=None,
            languages=None,
            n_parameters=model.num_parameters(),
            n_embedding_parameters=model.get_input_embeddings().weight.numel(),
            memory_usage_mb=sum(each.numel() * each.element_size() for each in weights) / 2**20,
            max_tokens=None if limit >= VERY_LARGE_INTEGER else limit,
            embed_dim=config.projection_dim,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch", "Transformers"],
            similarity_fn_name=ScoringFunction.COSINE if pools else ScoringFunction.CUSTOM,
            use_instructions=False,
            training_datasets=None,
            modalities=["image", "text"],
            model_type=["late-interaction" if model.matching.aligns else "dense"],
        )


def _batches(loader: Iterable[dict], size: int) -> Iterator[tuple[str, list]]:
    """`size` pictures or texts at a time; mteb's loader of pictures gives them one by one."""
    side, waiting = None, []
    for batch in loader:
        sides = [each for each in SIDES if each in batch]
        if len(sides) != 1:
            found = " and ".join(sides) or f"only {', '.join(batch)}"
            raise ValueError(f"Items have {found}; expected image or text, and one alone: OMIT encodes one at a time.")
        side = sides[0]
        waiting += batch[side]
        while len(waiting) >= size:
            yield side, waiting[:size]
            waiting = waiting[size:]
    if waiting:
        yield side, waiting


def _chunks(items: Iterator, size: int) -> Iterator[list]:
    while chunk := list(islice(items, size)):
        yield chunk


def _places(top_ranked, queries: list[str], documents: list[str]) -> list[list[int]]:
    """Of every query the places of its documents in the corpus."""
    place = {name: number for number, name in enumerate(documents)}
    return [[place[name] for name in top_ranked.get(query, [])] for query in queries]
