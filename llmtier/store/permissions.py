"""What a gateway refuses in a request body unless its configuration allows it by name."""

from enum import StrEnum


class Permission(StrEnum):
    """A body field that can hurt the engine, or a use of one; each has done so in a released engine."""

    BACKGROUND = "background"  # answers later, at an address that is not routed
    CHAT_TEMPLATE = "chat_template"  # a program that the engine runs
    CHAT_TEMPLATE_KWARGS = "chat_template_kwargs"  # may hold a template
    ECHO = "echo"  # only together with "logprobs": those of the whole prompt
    KV_TRANSFER_PARAMS = "kv_transfer_params"  # reads and frees other requests' cache
    MEDIA_IO_KWARGS = "media_io_kwargs"  # frames without bound
    MEDIA_URLS = "media_urls"  # images, sound and files that the engine fetches: a way into its network
    MM_PROCESSOR_KWARGS = "mm_processor_kwargs"
    PRIORITY = "priority"  # ahead of everybody
    PROMPT_EMBEDS = "prompt_embeds"  # tensors, unpickled
    PROMPT_LOGPROBS = "prompt_logprobs"  # as "echo"
    REQUEST_ID = "request_id"  # two alike stop the engine
    VLLM_XARGS = "vllm_xargs"  # of plugins
