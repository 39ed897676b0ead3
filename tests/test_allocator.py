import ctypes
import sys

from med_model.allocator import keep_freed_memory


def test_keep_freed_memory_makes_no_call_outside_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert keep_freed_memory() is False


def test_keep_freed_memory_accepts_a_libc_without_mallopt(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False


def test_keep_freed_memory_sets_all_three_options_even_if_one_is_refused(monkeypatch):
    class Libc:
        options: list[int] = []

        def mallopt(self, option: int, value: int) -> int:
            self.options.append(option)
            return int(option != -3)  # -3 is M_MMAP_THRESHOLD: an old glibc refuses a large value

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libc())
    assert keep_freed_memory() is False
    assert sorted(Libc.options) == [-3, -2, -1]
