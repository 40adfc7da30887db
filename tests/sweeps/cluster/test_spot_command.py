"""Prices, quotas and capacity against moto.

Moto knows the types of machines, but every spot price there is 0.00001 and quotas and placement scores are missing:
those three calls (and the list of regions, to keep it short) are answered here, all others by moto.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError
from moto import mock_aws

from sweeps import spot as spot_command
from sweeps.cluster.aws_prices import ACCELERATORS
from sweeps.cluster.cluster_file import CLUSTER_FILE, read_cluster_file
from sweeps.cluster.spot_report import H200_RATE, cost_lines, estimate_cost
from sweeps.spot import main
from tests.support.ray_private import check_cluster_config
from tests.support.service_descriptions import keep_service_descriptions

REGIONS = ("us-east-1", "us-west-2", "eu-west-1")
PRICES = {  # zone, type -> what history says, newest first
    ("us-east-1a", "g6.xlarge"): (1.2, 0.9, 3.0),
    ("us-east-1b", "g6.xlarge"): (1.0,),
    ("us-west-2b", "g6.48xlarge"): (4.0, 4.0, 80.0),
    ("us-west-2a", "g6.xlarge"): (0.6,),
    ("eu-west-1a", "g6.xlarge"): (0.4,),
}


class StubbedClient:
    """A client of moto, some of whose operations are answered here."""

    def __init__(self, client: Any, answers: dict[str, Callable[..., Any]]):
        self._client, self._answers = client, answers

    def __getattr__(self, operation: str) -> Any:
        return self._answers.get(operation) or getattr(self._client, operation)

    def get_paginator(self, operation: str) -> Any:
        if operation not in self._answers:
            return self._client.get_paginator(operation)
        return SimpleNamespace(paginate=lambda **arguments: [self._answers[operation](**arguments)])


def answers_of(region: str, quotas, score, prices) -> dict[str, Callable[..., Any]]:
    def describe_spot_price_history(**arguments):
        assert arguments["ProductDescriptions"] == ["Linux/UNIX"]
        return {
            "SpotPriceHistory": [
                {"AvailabilityZone": zone, "InstanceType": machine, "SpotPrice": str(price)}
                for (zone, machine), history in prices.items()
                if zone.startswith(region) and machine in arguments["InstanceTypes"]
                for price in history
            ]
        }

    def describe_regions():  # moto has some thirty
        return {"Regions": [{"RegionName": name} for name in (*REGIONS, "sa-east-1")]}

    def get_service_quota(**arguments):
        if quotas.get(region) is None:
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "GetServiceQuota")
        assert arguments["QuotaCode"] in ("L-3819A6DF", "L-7212CCBC")
        return {"Quota": {"Value": float(quotas[region])}}

    def get_spot_placement_scores(**arguments):
        return {"SpotPlacementScores": [{"Region": region, "Score": score}]}

    operations = (describe_spot_price_history, describe_regions, get_service_quota, get_spot_placement_scores)
    return {operation.__name__: operation for operation in operations}


@contextmanager
def cloud(monkeypatch, quotas, score=9, prices=PRICES):
    """Moto with these prices, quotas (virtual CPUs by region; None: no permission to ask) and placement score."""
    make_client = spot_command.make_client

    def stubbed_client(service: str, region: str) -> StubbedClient:
        return StubbedClient(make_client(service, region), answers_of(region, quotas, score, prices))

    keep_service_descriptions()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # images of machines, thousands in each region
    with mock_aws(), monkeypatch.context() as patch:
        patch.setattr(spot_command, "make_client", stubbed_client)
        yield


def spot(*arguments, regions=REGIONS):
    return main(["--accelerator", "L4", "--regions", *regions, *arguments])


def test_the_cheapest_by_the_median_per_gpu_within_the_quota(monkeypatch, capsys):
    with cloud(monkeypatch, {"us-east-1": 32, "us-west-2": 192, "eu-west-1": 0}):
        assert spot("--gpus", "8") == 0
    output = capsys.readouterr().out
    order = re.findall(r"^(\S+)\s+(g6\.\S+)\s+(\d)\s+([\d.]+)  (.*)$", output, re.M)
    assert order == [
        ("eu-west-1a", "g6.xlarge", "1", "0.4000", "0 GPUs"),
        ("us-west-2b", "g6.48xlarge", "8", "0.5000", "8 GPUs"),
        ("us-west-2a", "g6.xlarge", "1", "0.6000", "48 GPUs"),
        ("us-east-1b", "g6.xlarge", "1", "1.0000", "8 GPUs"),
        ("us-east-1a", "g6.xlarge", "1", "1.2000", "8 GPUs"),
    ]
    assert "1 machine g6.48xlarge in us-west-2b: 8 GPUs, $4.00 an hour" in output
    assert "capacity in us-west-2 is likely (AWS's placement score: 9 of 10)" in output
    assert "careful" not in output


def test_a_card_that_the_pinned_torch_has_no_code_for_is_named(monkeypatch, capsys):
    with cloud(monkeypatch, {"us-east-1": 96}, prices={("us-east-1c", "p3dn.24xlarge"): (8.0,)}):
        assert main(["--accelerator", "V100", "--gpus", "8", "--regions", "us-east-1"]) == 0
    output = capsys.readouterr().out
    assert "1 machine p3dn.24xlarge in us-east-1c: 8 GPUs, $8.00 an hour" in output
    assert "has no code for a V100 (compute capability 7.0, it begins at 7.5)" in output


def test_a_quota_without_permission_is_named(monkeypatch, capsys):
    with cloud(monkeypatch, {}, score=2):
        assert spot("--gpus", "2", regions=("us-east-1",)) == 0
    output = capsys.readouterr().out
    assert "the quota of us-east-1 is not known (AccessDenied: no)" in output
    assert "capacity in us-east-1 is unlikely: wait, or take another card" in output


def test_a_zero_quota_prints_what_to_request(monkeypatch, capsys):
    with cloud(monkeypatch, dict.fromkeys(REGIONS, 0)):
        assert spot("--gpus", "8") == 1
    output = capsys.readouterr().out
    assert "no quota: nowhere may this account run 8 such GPUs" in output
    assert "--quota-code L-3819A6DF --desired-value 32 --region eu-west-1" in output


def test_no_capacity_is_one_line(monkeypatch, capsys):
    with cloud(monkeypatch, {}, prices={}):
        assert spot("--gpus", "8", regions=("us-east-1",)) == 1
    assert "no capacity: no zone offers spot machines with at most 8 L4" in capsys.readouterr().out


def test_all_regions_of_the_account_are_looked_up(monkeypatch, capsys):
    """And a region that fails is a remark, not a gap."""

    def client(service, region):
        if region == "sa-east-1":
            raise ClientError({"Error": {"Code": "OptInRequired", "Message": "not yours"}}, "any")
        return spot_command.make_client(service, region)

    with cloud(monkeypatch, {"us-east-1": 64, "us-west-2": 192, "eu-west-1": 64}):
        assert main(["--accelerator", "l4", "--gpus", "1"], client) == 0
    output = capsys.readouterr().out
    assert "sa-east-1 was not seen (OptInRequired: not yours)" in output
    assert "1 machine g6.xlarge in eu-west-1a: 1 GPU, $0.40 an hour" in output


def test_missing_credentials_are_one_line(monkeypatch, capsys, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # that of an earlier test has its credentials
    assert main(["--accelerator", "L4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no AWS credentials: give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
    assert error.count("\n") == 1


def test_refused_credentials_are_named(capsys):
    def client(service, region):
        raise ClientError({"Error": {"Code": "AuthFailure", "Message": "not able to validate"}}, "DescribeRegions")

    assert main(["--accelerator", "L4"], client) == 2
    assert "AWS refuses these credentials: AuthFailure: not able to validate" in capsys.readouterr().err


def test_a_refusal_that_has_nothing_to_do_with_credentials_is_one_line(capsys):
    def client(service, region):
        raise ClientError({"Error": {"Code": "RequestLimitExceeded", "Message": "too fast"}}, "DescribeRegions")

    assert main(["--accelerator", "L4"], client) == 2
    assert capsys.readouterr().err == "error: AWS does not list its regions: RequestLimitExceeded: too fast\n"


def test_a_rate_that_was_given_is_used():
    lines = cost_lines(3.6e15, 1.0, 1, 1e12, ACCELERATORS["L4"])
    assert "$1.00 for the workers" in lines[0]
    assert "with your --rate" in lines[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--accelerator", "V9000"], "unknown accelerator 'V9000'; choose from: A100, A10G"),
        (["--accelerator", "L4", "--rate", "0"], "--rate must be a positive number, but got 0"),
        (["--accelerator", "L4", "--rate", "nan"], "--rate must be a positive number, but got nan"),
        (["--accelerator", "L4", "--rate", "1e12"], "--rate cannot be used without --plan; leave it out"),
        (["--accelerator", "L4", "--set", "train.epochs=1"], "--set cannot be used without --plan; leave it out"),
        (["--accelerator", "L4", "--cluster", "c.yaml"], "--cluster cannot be used without --write; leave it out"),
        (["--accelerator", "L4", "--gpus", "0"], "--gpus must be at least 1, but got 0"),
        (["--accelerator", "L4", "--write", "--cluster", "/nowhere.yaml"], "the cluster file /nowhere.yaml cannot be"),
        (["--accelerator", "L4", "--write", "--cluster", __file__], "lacks the lines that --write edits"),
        (["--accelerator", "L4", "--plan", "nope"], "unknown space 'nope'; choose from: "),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_write_puts_region_zones_and_types_into_the_file_and_keeps_the_rest(monkeypatch, capsys, tmp_path):
    path = tmp_path / "cluster.yaml"
    shutil.copy(CLUSTER_FILE, path)
    with cloud(monkeypatch, {"us-west-2": 192}):
        assert spot("--gpus", "8", "--write", "--cluster", str(path), regions=("us-west-2",)) == 0
    assert "written into cluster.yaml: region us-west-2" in capsys.readouterr().out
    config = yaml.safe_load(path.read_text())
    assert config["provider"]["region"] == "us-west-2"
    assert config["provider"]["availability_zone"] == "us-west-2b,us-west-2a"
    assert set(config["available_node_types"]) == {"head", "g6.48xlarge", "g6.xlarge"}
    assert config["available_node_types"]["g6.48xlarge"]["resources"] == {"CPU": 192, "GPU": 8}
    assert config["available_node_types"]["g6.48xlarge"]["max_workers"] == 1
    assert config["available_node_types"]["g6.xlarge"]["max_workers"] == config["max_workers"] == 8
    assert config["available_node_types"]["g6.xlarge"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    check_cluster_config(config)
    comments = re.findall(r"^#.*$|^  #.*$", CLUSTER_FILE.read_text(), re.M)
    assert re.findall(r"^#.*$|^  #.*$", path.read_text(), re.M) == comments
    assert read_cluster_file(path)  # and may be written again


def test_the_cost_of_a_plan():
    """Ten cards of 1e12 mult-adds a second at 0.5 dollars: 3.6e16 mult-adds take an hour and five dollars."""
    cost = estimate_cost(3.6e16, 0.5, 10, 1e12)
    assert cost.seconds == pytest.approx(3600)
    assert cost.dollars == pytest.approx(5.0)


def test_the_plan_is_priced_on_the_command_line(monkeypatch, capsys):
    with cloud(monkeypatch, {"us-west-2": 192}):
        assert spot("--plan", "tt_dims", "--gpus", "1", regions=("us-west-2",)) == 0
    output = capsys.readouterr().out
    work = float(re.search(r"the whole plan: (\S+) mult-adds", output)[1])
    dollars = float(re.search(r"and \$([\d.]+) for the workers", output)[1])
    rate = H200_RATE * ACCELERATORS["L4"].bandwidth / ACCELERATORS["H200"].bandwidth
    assert dollars == pytest.approx(estimate_cost(work, 0.6, 1, rate).dollars, abs=0.01)
    assert "from one study measured on an H200, scaled by memory bandwidth" in output
