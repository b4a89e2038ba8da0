"""`evaluate` module over `omit_hf.retrieval_metrics`."""

import datasets
import evaluate
import numpy as np

from omit_hf.evaluation.retrieval import retrieval_metrics


class ImageTextRetrieval(evaluate.Metric):
    """Recall@K, ranks and RSUM of image-text retrieval in both directions; see `omit_hf.retrieval_metrics`.

    A prediction is an image's similarity to every caption, a reference the numbers of that image's captions.

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

    def _compute(self, predictions, references):
        lengths = sorted({len(row) for row in predictions})
        if len(lengths) > 1:
            raise ValueError(f"predictions have {lengths[0]} to {lengths[-1]} scores; expected one for every caption.")
        similarity = np.asarray(predictions, dtype=np.float32)
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
        return retrieval_metrics(similarity, index)
