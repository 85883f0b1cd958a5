"""The knobs of the devices and processes of a run; `common.get_config` adds them to the others."""

from ml_collections import ConfigDict, FieldReference


def _anything(default) -> FieldReference:
    """A field whose value may have another type than its default."""
    return FieldReference(default, field_type=object)


def add_device_sections(config: ConfigDict) -> None:
    """Adds the sections mesh, sharding and distributed."""
    config.mesh = dict(  # the devices, which all share each batch (-1: the rest of them)
        data=-1,  # devices along which weights are copied
        fsdp=1,  # devices along which weights are split too
        # How they add the gradients of kernels and biases: 'float32' | 'compute': in `precision`,
        # half the bytes, as in older versions, whose runs keep it.
        gradients='float32',
    )
    config.sharding = dict(  # how fsdp splits the weights
        # Rows (regex, 'largest') or (regex, an axis or None for each dimension); the first match of
        # the whole name decides: [('.*/kernel', (None, 'fsdp')), ('.*', ())]. 'auto': 'largest' for
        # all.
        rules=_anything('auto'),
        min_size=16384,  # smaller arrays stay whole, in numbers
    )
    config.distributed = dict(  # several processes, each started with the same command
        coordinator='auto',  # HOST:PORT of process 0; 'auto': as Slurm, Open MPI, Kubernetes or a
                             # TPU pod say, one process otherwise; '': one process
        processes=0,  # number of processes, with a HOST:PORT
        process=-1,  # number of this process, from 0, with a HOST:PORT
        timeout=30,  # seconds of silence after which a process counts as dead
        join_timeout=300,  # seconds to wait for the others at the start
    )
