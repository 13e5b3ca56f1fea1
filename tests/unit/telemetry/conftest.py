from tests.recorded_spans import recorded_spans

__all__ = ["recorded_spans"]
