from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from lrsearch.workloads import WORKLOADS


def test_importing_the_workloads_imports_no_heavy_library() -> None:
    heavy = "{'torch', 'torchmetrics', 'torchvision', 'sklearn', 'PIL', 'numpy'}"
    program = f"import sys, lrsearch.workloads; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_workload_goes_by_its_own_name() -> None:
    for name, workload in WORKLOADS.items():
        assert workload.model_fields["name"].default == name


OTHERS = {"callable", "diabetes", "image_folder", "multi_label_images", "text"}


@pytest.mark.parametrize("name", sorted(set(WORKLOADS) - OTHERS))
def test_settings_are_frozen_hashable_and_refuse_what_they_do_not_know(name: str) -> None:
    workload = WORKLOADS[name](name=name)
    assert hash(workload) == hash(WORKLOADS[name](name=name))
    with pytest.raises(ValidationError, match="frozen"):
        workload.batch_size = 1
    with pytest.raises(ValidationError, match="extra"):
        WORKLOADS[name](batchsize=1)
    with pytest.raises(ValidationError, match=r"Unknown model 'small_cn'.*Did you mean 'small_cnn'"):
        WORKLOADS[name](model="small_cn")
    for wrong in ({"batch_size": 0}, {"validation_fraction": 1}, {"validation_fraction": 0}, {"train_limit": 0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            WORKLOADS[name](**wrong)
