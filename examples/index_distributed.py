"""Add the pictures of folders to a library from all machines of a Ray cluster.

    python examples/index_distributed.py /shared/pictures --library s3://bucket/photos.lance --model outputs/scenes \\
        --storage_options '{"aws_region": "eu-central-1"}'

Every machine must have the folders under the same path, and reach the library. It can be stopped at any moment; the
same command goes on. `PictureLibrary` opens what it makes, and `sync` keeps it up to date.
"""

import ray

from omit_hf.command_line import CommandParser, json_object, run_script
from omit_hf.library import PictureLibrary
from omit_hf.library.distributed import add_distributed


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("source", nargs="+", help="folders or files")
    parser.add_argument("--library", required=True, help="folder or address of the library, made if need be")
    parser.add_argument("--model", help="folder or Hub id of an OmitModel; by default the library's")
    parser.add_argument("--storage_options", type=json_object, help="of an object store, as JSON")
    parser.add_argument("--address", help="of the Ray cluster; by default RAY_ADDRESS, or a cluster of this machine")
    parser.add_argument("--encoders", type=int, help="processes that encode; by default one a GPU, or one a core")
    parser.add_argument("--batch_size", type=int, default=64, help="pictures that a process encodes together")
    arguments = parser.parse_args()
    library = PictureLibrary(arguments.library, arguments.model, storage_options=arguments.storage_options)
    ray.init(address=arguments.address, ignore_reinit_error=True)
    options = {"encoders": arguments.encoders, "batch_size": arguments.batch_size}
    report = add_distributed(library, arguments.source, **options)
    for path, reason in report.unreadable.items():
        print(f"{path}: {reason}")
    print(
        f"{report.added} added, {report.replaced} replaced, {report.moved} moved, {report.unchanged} unchanged, "
        f"{len(report.unreadable)} unreadable, in {report.seconds:.0f} s; {len(library)} pictures → {library.path}"
    )


if __name__ == "__main__":
    run_script(main, ray.exceptions.RayError)
