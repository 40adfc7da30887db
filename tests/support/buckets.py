"""A pretended S3: moto's server on loopback, with one bucket, as pyarrow reaches it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import boto3

from tests.support.service_descriptions import keep_service_descriptions

# They open nothing, and must be in the environment of whoever uses the bucket
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def bucket(*, conditional: bool = True) -> Iterator[str]:
    """The URI of a new bucket, which needs CREDENTIALS in the environment.

    One that is not `conditional` takes the condition of a put and does not look at it.
    """
    keep_service_descriptions()
    with ExitStack() as stack:
        if not conditional:
            stack.enter_context(_ignored_conditions())
        yield stack.enter_context(_bucket())


@contextmanager
def _ignored_conditions() -> Iterator[None]:
    from moto.s3.responses import S3Response

    put_object = S3Response.put_object

    def unconditional(self: Any) -> Any:
        self.headers = {name: value for name, value in self.headers.items() if name.lower() != "if-none-match"}
        return put_object(self)

    with patch.object(S3Response, "put_object", unconditional):
        yield


@contextmanager
def _bucket() -> Iterator[str]:
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
