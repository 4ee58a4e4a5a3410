from pathlib import Path

from lightning_cl.datamodules import DomainNet
from tests.helpers.fakes import domainnet
from tests.helpers.fakes._lists import write_lines


def test_domains_come_in_the_order_given(tmp_path: Path) -> None:
    arguments = domainnet.write(tmp_path)
    for domains in (["sketch", "clipart"], ["clipart", "sketch"]):
        stream = DomainNet(**{**arguments, "domains": domains})
        assert [(e.classes, e.num_train, e.num_test) for e in stream.experiences] == [((0, 1, 2), 12, 6)] * 2
        red = [int(stream.part(k, "train")[0][0][0, 9, 9]) for k in range(2)]
        first = {"sketch": 0, "clipart": 18 % 13 * 21}  # the colours of the images that the fake writes
        assert all(abs(value - first[domain]) < 6 for value, domain in zip(red, domains, strict=True))


def test_a_class_that_a_domain_does_not_train_on_is_not_its_own(tmp_path: Path) -> None:
    """As the t-shirt in painting, of which the published lists have test images only."""
    arguments = domainnet.write(tmp_path)
    lines = (tmp_path / "clipart_train.txt").read_text().splitlines()
    write_lines(tmp_path / "clipart_train.txt", [line for line in lines if not line.endswith(" 1")])
    stream = DomainNet(**arguments)
    assert stream.classes == [(0, 1, 2), (0, 2)]
    assert stream.part(1, "test").labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_what_was_cut_is_in_the_shape(tmp_path: Path) -> None:
    arguments = domainnet.write(tmp_path)
    shape = DomainNet(**arguments, split="continuum").shape()
    assert (shape["domains"], shape["split"]) == (["sketch", "clipart"], "continuum")


def test_experiences_are_named_after_their_domains() -> None:
    assert [DomainNet(domains=["sketch", "real"]).name_of(i) for i in (0, 1)] == ["sketch", "real"]
