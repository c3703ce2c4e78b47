"""Logs of Ollama servers from 0.3 to 0.33, and of llama-server."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from velollm.facts import LogGpu
from velollm.probe.logline import parse_fields, parse_server_environment
from velollm.probe.server import parse_server_log, server_facts

HEAD = "time=2025-01-01T00:00:00.000Z level=INFO source="
START = HEAD + 'routes.go:1 msg="Listening on 127.0.0.1:11500 (version 0.9.9)"\n'
COMPUTE = HEAD + 'types.go:1 msg="inference compute" '


def test_fields_of_a_line() -> None:
    line = 'level=INFO msg="a \\"b\\" c" "total vram"="8.0 GiB" name=Orin empty="" cut="N>'
    assert parse_fields(line) == {
        "level": "INFO", "msg": 'a "b" c', "total vram": "8.0 GiB", "name": "Orin", "empty": "",
    }  # fmt: skip


def test_an_old_start_with_an_unquoted_name() -> None:
    text = (
        START
        + COMPUTE
        + 'id=GPU-1 library=cuda variant=v12 compute=8.7 driver=12.6 name=Orin total="4.0 GiB" available="3.9 GiB"\n'
    )
    facts = parse_server_log(text)
    assert (facts.version, facts.port) == ("0.9.9", 11500)
    assert facts.gpus == (
        LogGpu(name="Orin", library="cuda", variant="v12", compute="8.7", driver="12.6", total="4.0 GiB",
               available="3.9 GiB", integrated=True),
    )  # fmt: skip


def test_a_new_start_has_the_product_in_its_description() -> None:
    line = (
        COMPUTE + 'id=GPU-1 filter_id="" library=CUDA compute=8.6 name=CUDA0 description="NVIDIA X" libdirs=ollama '
        'driver=13.0 pci_id=0000:01:00.0 type=discrete total="12.0 GiB" available="11.6 GiB"\n'
    )
    text = "Jan 01 00:00:00 host ollama[1]: " + START + "Jan 01 00:00:00 host ollama[1]: " + line
    facts = parse_server_log(text)
    assert facts.gpus == (
        LogGpu(name="NVIDIA X", library="cuda", compute="8.6", driver="13.0", total="12.0 GiB", available="11.6 GiB",
               integrated=False),
    )  # fmt: skip


def test_metal_shows_a_budget_and_calls_itself_discrete() -> None:
    text = (
        COMPUTE
        + 'id=0 library=Metal compute=0.0 name=Metal description="Apple M2" driver=0.0 type=discrete total="10.7 GiB"\n'
    )
    (gpu,) = parse_server_log(text).gpus or ()
    assert (gpu.name, gpu.is_budget_not_memory, gpu.integrated, gpu.compute) == ("Apple M2", True, None, None)
    assert parse_server_log(text).os == "macos"


def test_rocm_has_a_gfx_target_and_sycl_a_part_without_memory() -> None:
    text = COMPUTE + 'id=G library=rocm variant="" compute=gfx1030 driver=6.3 name=1002:73bf total="16.0 GiB"\n'
    text += COMPUTE + 'id=1 library=sycl compute="" driver=0.0 name="Intel(R) UHD Graphics 770" total="0 B"\n'
    card, part = parse_server_log(text).gpus or ()
    assert (card.gfx, card.compute, card.driver) == ("gfx1030", None, "6.3")
    assert (part.total, part.integrated, part.driver) == ("0 B", True, None)


def test_the_processor_is_no_gpu() -> None:
    text = COMPUTE + 'id=0 library=cpu name="" total="31.3 GiB" available="30.4 GiB"\n'
    text += HEAD + 'routes.go:1 msg="vram-based default context" total_vram="31.3 GiB" default_num_ctx=32768\n'
    facts = parse_server_log(text)
    assert (facts.gpus, facts.memory, facts.total_vram, facts.default_num_ctx) == ((), "31.3 GiB", None, 32768)
    assert parse_server_log(START).gpus is None


def test_overhead_belongs_to_its_gpu() -> None:
    text = HEAD + 'gpu.go:1 msg="detected OS VRAM overhead" id=GPU-2 library=cuda name=B overhead="498.8 MiB"\n'
    text += COMPUTE + 'id=GPU-1 library=cuda name=A total="8.0 GiB"\n' + COMPUTE + "id=GPU-2 library=cuda name=B\n"
    assert [gpu.os_overhead for gpu in parse_server_log(text).gpus or ()] == [None, "498.8 MiB"]


def test_cores_of_a_windows_machine_with_two_packages() -> None:
    line = HEAD + 'gpu_windows.go:214 msg="" package={} cores=16 efficiency=8 threads=24\n'
    facts = parse_server_log(line.format(0) + line.format(1))
    assert facts.os == "windows"
    assert facts.cpu is not None
    cpu = facts.cpu
    assert (cpu.sockets, cpu.physical_cores, cpu.performance_cores, cpu.efficiency_cores, cpu.logical_cores) == (
        2, 32, 16, 16, 48,
    )  # fmt: skip


def test_the_last_start_counts() -> None:
    config = HEAD + 'routes.go:1 msg="server config" env="map[OLLAMA_HOST:x]"\n'
    gpu = COMPUTE + "id=GPU-1 library=cuda name=A\n"
    text = config + START + gpu + config + START.replace("0.9.9", "0.10.0") + COMPUTE + "id=0 library=cpu\n"
    facts = parse_server_log(text)
    assert (facts.version, facts.gpus) == ("0.10.0", ())


def test_docker_writes_its_lines_in_json() -> None:
    text = '{"log":"time=T level=INFO source=routes.go:1 msg=\\"Listening on [::]:11434 (version 0.12.0)\\"\\n"}\n'
    assert (parse_server_log(text).version, parse_server_log(text).port) == ("0.12.0", 11434)


def test_environment_with_blanks_brackets_and_backslashes() -> None:
    values = (
        "OLLAMA_HOST:http://127.0.0.1:11434 OLLAMA_MODELS:D:\\\\my models OLLAMA_ORIGINS:[http://a:* app://*] no_proxy:"
    )
    plain = f'2025/02/27 21:01:41 routes.go:1186: INFO server config env="map[{values}]"\n'
    for text in (plain, HEAD + f'routes.go:1 msg="server config" env="map[{values}]"\n'):
        assert parse_server_environment(text) == {
            "OLLAMA_HOST": "http://127.0.0.1:11434",
            "OLLAMA_MODELS": "D:\\my models",
            "OLLAMA_ORIGINS": "[http://a:* app://*]",
            "no_proxy": "",
        }
    assert parse_server_environment("nothing") is None
    assert parse_server_environment('server config env="map[]"') == {}


CHILD = HEAD + 'llama_server.go:1 msg="starting llama-server" cmd="/usr/lib/llama-server --model /m --port 1 {}"\n'
LOADED = """\
system_info: n_threads = 6 (n_threads_batch = 6) / 12 | CPU : AVX = 1 |
load_tensors: offloaded 15/33 layers to GPU
llama_context: constructing llama_context
llama_context: n_seq_max             = 2
llama_context: n_ctx_seq             = 4096
llama_context: n_batch               = 1024
llama_context: n_ubatch              = 512
llama_context: flash_attn            = auto
llama_kv_cache:        CPU KV buffer size =  2304.00 MiB
llama_kv_cache: size = 4096.00 MiB ( 32768 cells,  32 layers,  1/1 seqs), K (q8_0): 2048.00 MiB, V (f16): 2048.00 MiB
resolve_fused_ops: Flash Attention enabled
llama_context: constructing llama_context
llama_kv_cache: size = 4.00 MiB (  4096 cells,   2 layers,  1/1 seqs), K (f16): 2.00 MiB, V (f16): 2.00 MiB
"""


def test_the_child_of_a_new_server() -> None:
    text = START + CHILD.format("-c 8192 -np 2 --flash-attn auto -b 1024 -ub 512") + LOADED
    facts = server_facts({"serve.log": text})
    assert facts is not None
    assert (facts.engine, facts.runner, facts.version) == ("ollama", "llama-server", "0.9.9")
    assert (facts.context_tokens, facts.slots, facts.batch, facts.ubatch) == (4096, 2, 1024, 512)
    assert (facts.gpu_layers, facts.total_layers, facts.threads) == (15, 33, 6)
    assert (facts.flash_attention, facts.kv_type, facts.kv_cache_bytes) == ("auto -> enabled", "q8_0/f16", 2**32)


def test_the_last_of_two_loads_counts() -> None:
    text = CHILD.format("-c 4096 -np 1") + LOADED + CHILD.format("-c 512 -np 1 --flash-attn off")
    facts = server_facts({"serve.log": text})
    assert facts is not None
    assert (facts.context_tokens, facts.flash_attention, facts.kv_cache_bytes) == (512, "off", None)


def test_a_load_that_failed_is_not_what_runs() -> None:
    text = CHILD.format("-c 4096 -np 1 --cache-type-k q9") + HEAD + 'sched.go:1 msg="Load failed" error="exit 1"\n'
    facts = server_facts({"serve.log": text})
    assert facts is not None
    assert (facts.engine, facts.context_tokens, facts.kv_type) == ("ollama", None, None)


def test_the_middle_generation_tells_its_load_request() -> None:
    request = HEAD + (
        'runner.go:1 msg=load request="{{Operation:{} LoraPath:[] Parallel:4 BatchSize:512 FlashAttention:Enabled '
        'KvSize:32768 KvCacheType:q8_0 NumThreads:8 GPULayers:{} MultiUserCache:false}}"\n'
    )
    text = HEAD + 'server.go:1 msg="starting runner" cmd="/bin/ollama runner --ollama-engine --port 9"\n'
    text += HEAD + 'server.go:1 msg="starting runner" cmd="/bin/ollama runner --ollama-engine --model /m --port 9"\n'
    text += request.format("fit", "[]") + request.format("commit", "20[ID:GPU-1 Layers:20(28..47)]")
    facts = server_facts({"serve.log": text})
    assert facts is not None
    assert (facts.runner, facts.context_tokens, facts.slots, facts.threads) == ("ollama runner", 8192, 4, 8)
    assert (facts.flash_attention, facts.kv_type, facts.gpu_layers) == ("on", "q8_0", 20)


def test_the_first_generation_has_it_all_in_its_flags() -> None:
    flags = "--ctx-size 8192 --batch-size 512 --n-gpu-layers 33 --flash-attn --parallel 4"
    text = HEAD + f'server.go:1 msg="starting llama server" cmd="/tmp/ollama_llama_server --model /m {flags}"\n'
    facts = server_facts({"serve.log": text})
    assert facts is not None
    assert (facts.context_tokens, facts.slots, facts.batch, facts.gpu_layers) == (2048, 4, 512, 33)
    assert (facts.flash_attention, facts.version) == ("on", None)


def test_a_bare_llama_server() -> None:
    facts = server_facts({"llama.log": "build: 6123 (abcdef) with cc for x86_64-linux-gnu\n" + LOADED})
    assert facts is not None
    assert (facts.engine, facts.runner, facts.version) == ("llama.cpp", "llama-server", "b6123")


def test_texts_of_two_servers_are_no_server() -> None:
    other = START.replace("0.9.9", "0.1.1")
    assert server_facts({"a": START, "b": other}) is None
    assert server_facts({"a": START, "b": "nothing"}) is not None
    assert server_facts({"a": "nothing"}) is None
    assert server_facts({}) is None


PIECES = st.sampled_from(
    [START, COMPUTE, CHILD, LOADED, 'name="', "id=1 ", "library=cuda ", "cmd=\"", "--model", " -c ", "9" * 400,
     "'", "\\", "server config", "map[", "]", "A:", '{"log":', "}", "\n", "package=0 cores=", "gpu_windows.go",
     "n_ctx_seq = ", "²"]
)  # fmt: skip


@given(st.lists(PIECES | st.text(max_size=6), max_size=25).map("".join))
def test_no_text_makes_a_parser_raise(text: str) -> None:
    parse_server_log(text)
    parse_server_environment(text)
    server_facts({"a": text})
