from lightning_cl.spelling import nearest

NAMES = ["methods/ewc", "methods/replay", "quickstart", "streams/split_digits"]


def test_nearest_come_first() -> None:
    assert nearest("methods/replya", NAMES).startswith("Did you mean 'methods/replay'")
    assert nearest("quickstrat", NAMES) == "Did you mean 'quickstart'?"


def test_a_part_of_a_name_is_enough() -> None:
    assert nearest("replay", NAMES) == "Did you mean 'methods/replay'?"


def test_upper_and_lower_case_are_alike() -> None:
    assert nearest("ewc", ["EWC", "Replay"]) == "Did you mean 'EWC'?"


def test_without_a_near_one_all_are_listed() -> None:
    assert nearest("xyz", {"b", "a"}) == "Available: a, b."


def test_a_long_list_is_cut() -> None:
    """There are more than a thousand timm models."""
    message = nearest("?", [f"model{i:04}" for i in range(1000)])
    assert message.startswith("Available: model0000, model0001, ")
    assert message.endswith("model0019 and 980 more.")
