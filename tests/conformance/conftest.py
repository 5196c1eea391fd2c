"""Only our adapters are collected: the fetched files hold mixins, with markers of their own."""

collect_ignore_glob = ["upstream/*"]
MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "generate",
    "torch_compile_test",
)


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: transformers'")
