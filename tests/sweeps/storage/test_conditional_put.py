"""Of two machines that create an object at once one succeeds, also when the answer to it was lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from sweeps.storage.conditional_put import ConditionalPut


class Client:
    """A bucket that holds one object and refuses every put."""

    def __init__(self, status: int | None, content: bytes | None) -> None:
        self.status, self.content = status, content

    def put_object(self, **_: Any) -> None:
        if self.status is None:
            raise EndpointConnectionError(endpoint_url="http://nowhere")
        raise ClientError({"ResponseMetadata": {"HTTPStatusCode": self.status}}, "PutObject")

    def get_object(self, **_: Any) -> dict[str, Any]:
        if self.content is None:
            raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 404}}, "GetObject")
        return {"Body": SimpleNamespace(read=lambda: self.content)}


@pytest.mark.parametrize(
    ("status", "content", "created"),
    [
        (412, b"other", False),
        (409, None, False),  # it is being created, or was deleted meanwhile
        (412, b"ours", True),  # our first request succeeded, and its answer was lost
        (501, b"ours", None),  # the bucket knows no conditions
        (403, b"ours", None),
        (None, b"ours", None),
    ],
)
def test_a_refused_put_is_ours_only_if_the_object_has_our_content(monkeypatch, status, content, created):
    put = ConditionalPut("s3://bucket")
    monkeypatch.setattr("boto3.session.Session.client", lambda *_, **__: Client(status, content))
    assert put.create("bucket", "key", b"ours") is created
