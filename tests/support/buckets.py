"""A pretended S3: moto's server on loopback, with one bucket, as pyarrow reaches it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import boto3


@contextmanager
def bucket() -> Iterator[str]:
    """The URI of a new bucket; credentials that open nothing must be in the environment."""
    from moto.server import ThreadedMotoServer

    name = f"lowrank-{uuid.uuid4().hex[:8]}"  # moto's memory is the process's, whatever the server
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        boto3.client("s3", "us-east-1", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket=name)
        yield f"s3://{name}?region=us-east-1&scheme=http&endpoint_override={host}%3A{port}"
    finally:
        server.stop()
