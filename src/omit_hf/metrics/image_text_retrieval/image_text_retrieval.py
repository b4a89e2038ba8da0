"""`evaluate` module over `omit_hf.retrieval_metrics`."""

import datasets
import evaluate
import numpy as np

from omit_hf.evaluation.retrieval import mean_average_precision, precision_at_r, retrieval_metrics


class ImageTextRetrieval(evaluate.Metric):
    """Recall@K, ranks and RSUM of image-text retrieval in both directions; see `omit_hf.retrieval_metrics`.

    A prediction is an image's similarity to every caption; a reference lists the numbers of that image's captions.
    `relevant` lists all captions that are true of an image, and adds mAP, mAP@R and R-precision.

    Example:
        >>> import evaluate
        >>> from omit_hf.metrics import IMAGE_TEXT_RETRIEVAL
        >>> metric = evaluate.load(IMAGE_TEXT_RETRIEVAL)
        >>> metric.compute(predictions=[[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]], references=[[0, 1], [2]])["i2t_r1"]
        50.0
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Recall@K, ranks and RSUM of image-text retrieval in both directions.",
            citation="",
            inputs_description="predictions: similarity of an image to each caption; references: its captions.",
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float32")),
                    "references": datasets.List(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions, references, relevant=None):
        lengths = sorted({len(row) for row in predictions})
        if len(lengths) > 1:
            raise ValueError(f"predictions have {lengths[0]} to {lengths[-1]} scores; expected one for every caption.")
        similarity = np.asarray(predictions, dtype=np.float32)
        if relevant is not None:
            relevant = _relevance(relevant, similarity.shape)
        index = np.full(similarity.shape[1], -1)
        for image, captions in enumerate(references):
            for caption in captions:
                if not 0 <= caption < len(index):
                    raise ValueError(
                        f"references[{image}] has caption {caption}; expected 0 to {len(index) - 1}, the columns of "
                        "predictions."
                    )
                if index[caption] >= 0:
                    raise ValueError(
                        f"Caption {caption} is in references[{index[caption]}] and references[{image}]; expected it in "
                        "one."
                    )
                index[caption] = image
        if (index < 0).any():
            raise ValueError(f"Caption {np.argmax(index < 0)} is in none of the references; expected it in one.")
        metrics = retrieval_metrics(similarity, index)
        if relevant is not None:
            metrics |= mean_average_precision(similarity, relevant) | precision_at_r(similarity, relevant)
        return metrics


def _relevance(relevant, shape) -> np.ndarray:
    if len(relevant) != shape[0]:
        raise ValueError(f"relevant is of {len(relevant)} images; expected {shape[0]}, one for each of predictions.")
    matrix = np.zeros(shape, dtype=bool)
    for image, captions in enumerate(relevant):
        wrong = [caption for caption in captions if not 0 <= caption < shape[1]]
        if wrong:
            raise ValueError(
                f"relevant[{image}] has caption {wrong[0]}; expected 0 to {shape[1] - 1}, the columns of predictions."
            )
        matrix[image, list(captions)] = True
    return matrix
