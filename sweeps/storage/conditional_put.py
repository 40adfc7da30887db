"""Creates an object of an S3 bucket only if there is none: what pyarrow's file systems cannot do.

The bucket decides, so of two machines that create an object at once one succeeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from botocore.client import BaseClient

CONNECT_SECONDS, READ_SECONDS = 5, 20
_EXISTS = (409, 412)  # HTTP: another request created it at this moment, or it was there before


class ConditionalPut:
    """Creates objects in the bucket of a URI.

    Args:
        uri: s3://BUCKET/PREFIX with pyarrow's options `region`, `scheme` and `endpoint_override`.
    """

    def __init__(self, uri: str):
        self._uri = uri
        self._client: BaseClient | None = None

    def create(self, bucket: str, key: str, content: bytes) -> bool | None:
        """Create an object.

        Args:
            bucket: the bucket.
            key: the object's.
            content: of the object.

        Returns:
            True if it was created, False if there is one, None if the bucket cannot do this, or does not let us.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            client = self._connect()
            client.put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") not in _EXISTS:
                return None
            return self._holds(bucket, key, content)
        except BotoCoreError:
            return None
        return True

    def _holds(self, bucket: str, key: str, content: bytes) -> bool:
        """Whether the object is ours: the answer to our first request may have been lost, and the second refused."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return bool(self._connect().get_object(Bucket=bucket, Key=key)["Body"].read() == content)
        except (BotoCoreError, ClientError):
            return False

    def _connect(self) -> Any:
        if self._client is None:
            from boto3.session import Session
            from botocore.config import Config

            options = {name: values[0] for name, values in parse_qs(urlsplit(self._uri).query).items()}
            endpoint = options.get("endpoint_override")
            style = {"addressing_style": "path"} if endpoint else {}
            config = Config(
                connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries={"total_max_attempts": 3}, s3=style,
                # Other makers' buckets may refuse the checksums that boto3 adds by itself
                request_checksum_calculation="when_required", response_checksum_validation="when_required",
            )  # fmt: skip
            self._client = Session().client(
                "s3", region_name=options.get("region"), config=config,
                endpoint_url=f"{options.get('scheme', 'https')}://{endpoint}" if endpoint else None,
            )  # fmt: skip
        return self._client
