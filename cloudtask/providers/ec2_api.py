"""Calls to Amazon's API through boto3, with their errors and answers as the contract of providers wants them.

Facts are from Amazon's API reference (error codes, eventual consistency, limits).  botocore repeats a failed call once; who called
us does the rest.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from cloudtask.errors import ProviderBusyError, ProviderRefusedError, UsageError
from cloudtask.printable import sanitize

CONNECT_TIMEOUT, READ_TIMEOUT, ATTEMPTS = 5, 20, 2
"""Seconds, seconds, and how often a call is made: it ends within a minute."""
PAGE = 1000
"""The most that DescribeInstances lists at a time."""

BUSY = {
    "EC2ThrottledException", "InternalError", "InternalFailure", "RequestLimitExceeded", "RequestThrottled", "RequestThrottledException",
    "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequestsException", "Unavailable",
}  # fmt: skip
"""Codes that settle nothing, whatever their HTTP status."""
ROOMLESS = {
    "InsufficientAddressCapacity", "InsufficientCapacity", "InsufficientHostCapacity", "InsufficientInstanceCapacity",
    "InsufficientReservedInstanceCapacity",
}  # fmt: skip
"""Codes that come with HTTP 500 and yet say that nothing was made."""
CREDENTIALS = {
    "AuthFailure", "ExpiredToken", "ExpiredTokenException", "IncompleteSignature", "InvalidClientTokenId", "MissingAuthenticationToken",
    "RequestExpired", "SignatureDoesNotMatch", "UnrecognizedClientException",
}  # fmt: skip
NO_CREDENTIALS = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile with --ec2-profile, or run aws configure"

_LONGEST = 300
_ENCODED = re.compile(r"\s*Encoded authorization failure message: \S+")
_SECRETS = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b|(?:Credential|Signature)=[^\s,]+")
_ACCOUNT = re.compile(r"[0-9]{12}", re.ASCII)


class Ec2RefusedError(ProviderRefusedError):
    """EC2 said no; ``code`` is its word for why."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Ec2Api:
    """The API, in any region, with the credentials of ``profile`` or those that boto3 finds.  Raises UsageError where it cannot be used."""

    def __init__(self, region: str, profile: str | None) -> None:
        try:
            import boto3
            import botocore.exceptions as foreign
            import botocore.session
            from botocore.config import Config
            from botocore.parsers import ResponseParserError
        except ImportError as error:
            raise UsageError("ec2: boto3 is not installed: pip install 'cloudtask[ec2]'") from error
        self.region = region
        self._foreign = foreign
        self._unreadable = ResponseParserError
        retries: Any = {"mode": "standard", "total_max_attempts": ATTEMPTS}
        self._config = Config(connect_timeout=CONNECT_TIMEOUT, read_timeout=READ_TIMEOUT, retries=retries, user_agent_extra="cloudtask")
        self._clients: dict[tuple[str, str], Any] = {}
        self._account = ""
        try:
            inner = botocore.session.Session(profile=profile)
            inner.get_scoped_config()  # complains of a profile that is none
            inner.register_component("data_loader", _descriptions())
            self._session: Any = boto3.Session(botocore_session=inner, region_name=region)
        except foreign.BotoCoreError as error:
            raise UsageError(f"ec2: {_clean(str(error))}") from error

    def call(self, operation: str, region: str | None = None, service: str = "ec2", **parameters: Any) -> dict[str, Any]:
        """The answer to ``run_instances`` and the like.  Raises Ec2RefusedError, ProviderBusyError."""
        client = self._client(service, region or self.region)
        try:
            answer = getattr(client, operation)(**parameters)
        except self._foreign.ClientError as error:
            raise _said_no(error.response, _doing(operation)) from error
        except (self._foreign.BotoCoreError, self._unreadable, ValueError, TypeError, LookupError, AttributeError) as error:
            # The last four are botocore's parser on an answer of another shape, such as a date that is none.
            raise self._no_answer(error, _doing(operation)) from error
        if not isinstance(answer, dict):
            raise nonsense(operation)
        return answer

    def listed(self, operation: str, key: str, region: str | None = None, **parameters: Any) -> Iterator[dict[str, Any]]:
        """What all pages of ``describe_instances`` and the like have under ``key``.  An answer without it says nothing, not "none"."""
        token: dict[str, str] = {}
        while True:
            page = self.call(operation, region, **parameters, **token)
            items = page.get(key)
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise nonsense(operation)
            yield from items
            following = page.get("NextToken")
            if not following:
                return
            if not isinstance(following, str) or following == token.get("NextToken"):
                raise nonsense(operation)
            token = {"NextToken": following}

    def account(self) -> str:
        """The number of the account that the credentials are of; needs no permission.  Asked for once."""
        if not self._account:
            found = self.call("get_caller_identity", service="sts").get("Account")
            if not isinstance(found, str) or not _ACCOUNT.fullmatch(found):
                raise nonsense("get_caller_identity")
            self._account = found
        return self._account

    def _client(self, service: str, region: str) -> Any:
        if (service, region) not in self._clients:
            try:
                self._clients[service, region] = self._session.client(service, region_name=region, config=self._config)
            except (self._foreign.BotoCoreError, ValueError) as error:
                raise Ec2RefusedError(f"ec2: the API of {region} cannot be used: {_clean(str(error))}") from error
        return self._clients[service, region]

    def _no_answer(self, error: Exception, doing: str) -> Exception:
        """No answer of EC2's: what never left this machine was refused, about the rest nothing is known."""
        foreign = self._foreign
        if isinstance(error, foreign.NoCredentialsError):
            return Ec2RefusedError(f"ec2: {NO_CREDENTIALS}")
        if isinstance(error, (foreign.PartialCredentialsError, foreign.TokenRetrievalError, foreign.SSOError)):
            return Ec2RefusedError(f"ec2: the credentials cannot be had: {_clean(str(error))}")
        if isinstance(error, foreign.ParamValidationError):
            return Ec2RefusedError(f"ec2: {doing}: {_clean(str(error))}")
        return ProviderBusyError(f"ec2: {doing}: no answer that can be read: {_clean(str(error))}")


@functools.cache
def _descriptions() -> Any:
    """botocore's descriptions of Amazon's APIs: reading them takes 0.1 s, once in a process."""
    import botocore.session

    return botocore.session.Session().get_component("data_loader")


def nonsense(operation: str) -> ProviderBusyError:
    """An answer that is none."""
    return ProviderBusyError(f"ec2: {_doing(operation)}: the answer makes no sense")


def _said_no(response: Any, doing: str) -> Exception:
    """An error that EC2 answered with.  What was sent twice may have been done the first time."""
    said, about = response.get("Error", {}), response.get("ResponseMetadata", {})
    code, status = str(said.get("Code", "")), int(about.get("HTTPStatusCode", 0))
    message = f"ec2: {doing}: {_clean(code)}: {_clean(_ENCODED.sub('', str(said.get('Message', ''))))}"
    # A code that is a number is not EC2's, but that of something on the way there.
    own = bool(code) and not code.isdigit() and code != "Unknown"
    final = code in ROOMLESS or (400 <= status < 500 and own and code not in BUSY and not about.get("RetryAttempts"))
    if not final:
        return ProviderBusyError(message)
    return Ec2RefusedError(message + (" (check the credentials, and this machine's clock)" if code in CREDENTIALS else ""), code)


def _doing(operation: str) -> str:
    """``run_instances`` as Amazon's documents call it."""
    return "".join(part.capitalize() for part in operation.split("_"))


def _clean(text: str) -> str:
    """One line without anything secret."""
    found = sanitize(" ".join(_SECRETS.sub("***", text).split()))
    return found if len(found) <= _LONGEST else f"{found[:_LONGEST]}..."
