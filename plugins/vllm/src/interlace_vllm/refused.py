"""What stands in for the model under a version of vLLM that the plug-in does not know: an import
that says so."""

import vllm

from interlace_vllm.supported import why_not_version

raise ImportError(why_not_version(vllm.__version__))
