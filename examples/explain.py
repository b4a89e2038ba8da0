"""Draw where a model finds the words of a sentence in a picture.

python examples/explain.py outputs/scenes picture.png "a small red circle left of a star" --output plan.png
python examples/explain.py outputs/scenes scenes:12 --output plan.png     (test scene 12 and its first caption)
"""

import argparse
import sys

from huggingface_hub.errors import StrictDataclassError
from PIL import Image

from omit_hf import OmitModel, OmitProcessor
from omit_hf.data import load_scenes
from omit_hf.visualization import explain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of an OmitModel")
    parser.add_argument("picture", help="an image file, or scenes:N for test scene N")
    parser.add_argument("sentence", nargs="?", help="a caption; for a scene, its own first caption by default")
    parser.add_argument("--output", default="plan.png", help="PNG, SVG or PDF to write (default: %(default)s)")
    arguments = parser.parse_args()

    if arguments.picture.startswith("scenes:"):
        number = arguments.picture.removeprefix("scenes:")
        if not number.isdecimal():
            raise ValueError(f"The picture is {arguments.picture!r}; expected scenes:N with a number N from 0.")
        number = int(number)
        row = load_scenes(train_size=1, validation_size=1, test_size=number + 1)["test"][number]
        picture = row["image"]
        sentence = row["captions"][0] if arguments.sentence is None else arguments.sentence
    elif arguments.sentence is None:
        parser.error("a picture of your own needs a sentence")
    else:
        picture, sentence = Image.open(arguments.picture), arguments.sentence
    model, processor = OmitModel.from_pretrained(arguments.model), OmitProcessor.from_pretrained(arguments.model)
    figure = explain(model, processor, picture, sentence)
    figure.savefig(arguments.output, dpi=150)
    print(f"{sentence!r} → {arguments.output}")


if __name__ == "__main__":
    try:
        main()
    except StrictDataclassError as error:
        sys.exit(f"error: {error.__cause__}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
