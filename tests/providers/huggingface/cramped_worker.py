"""The real worker with half a gigabyte of memory to work in: ``python cramped_worker.py SOCKET``."""

import resource

import psutil

from providers.huggingface import worker

if __name__ == "__main__":
    limit = psutil.Process().memory_info().vms + 512 * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    worker.main()
