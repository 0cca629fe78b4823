"""Google Cloud Storage on this machine: `python emulator.py PORT`, bucket 'mine'."""

import sys

from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server


def download(request, response, storage, *args, plain=objects.download, **kwargs):
    # A header of the real service without which TensorStore reads nothing.
    try:
        names = request.params["bucket_name"], request.params["object_id"]
        response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]
    except Exception:
        pass
    plain(request, response, storage, *args, **kwargs)


objects.download = download
create_server("127.0.0.1", int(sys.argv[1]), True, default_bucket="mine").run()
