"""The manifests for Google Kubernetes Engine: valid, and with what JAX's own detection needs."""

import socket
import sys
import time
import types
from pathlib import Path

import pytest
from jax._src.clusters import cloud_tpu_cluster
from jax._src.clusters.k8s_cluster import K8sCluster

from train_lib.commands import command_line
from train_lib.runtime import distributed

yaml = pytest.importorskip('yaml')
ROOT = Path(__file__).parents[1]
GPU, TPU = (ROOT / f'scripts/gke_{kind}.yaml' for kind in ('gpu', 'tpu'))


def unknown(host: str):
    raise socket.gaierror(f'{host}: Name or service not known')


def documents(path: Path) -> dict[str, dict]:
    """{kind: document}"""
    return {found['kind']: found for found in yaml.safe_load_all(path.read_text())}


def environment(path: Path, index: int) -> dict[str, str]:
    """What Kubernetes, and on TPU nodes GKE, put into the environment of a pod of the Job."""
    job = documents(path)['Job']
    name, spec = job['metadata']['name'], job['spec']
    pod = spec['template']['spec']
    found = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'HOSTNAME': f'{name}-{index}'}
    if spec['completionMode'] == 'Indexed':
        found['JOB_COMPLETION_INDEX'] = str(index)
    if 'google.com/tpu' in pod['containers'][0]['resources']['limits']:
        found['TPU_WORKER_ID'] = str(index)
        found['TPU_WORKER_HOSTNAMES'] = ','.join(f'{name}-{k}.{pod["subdomain"]}'
                                                 for k in range(spec['completions']))
    return found


@pytest.mark.parametrize('path', [GPU, TPU], ids=['gpu', 'tpu'])
def test_kubernetes_takes_the_manifest(path):
    validator = pytest.importorskip('kubernetes_validate',
                                    reason='kubernetes-validate is not installed')
    for document in documents(path).values():
        for version in ('1.31', '1.37'):
            validator.validate(document, version, strict=True)
    wrong = documents(path)['Job']
    wrong['spec']['podFailurePolicy']['rules'][0]['action'] = 1
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, '1.37', strict=True)


@pytest.mark.parametrize('path', [GPU, TPU], ids=['gpu', 'tpu'])
def test_the_parts_fit_together(path):
    found = documents(path)
    spec = found['Job']['spec']
    pod, [container] = spec['template']['spec'], spec['template']['spec']['containers']
    service = found['Service']
    assert service['spec']['clusterIP'] == 'None' and service['spec']['publishNotReadyAddresses']
    assert pod['subdomain'] == service['metadata']['name']
    assert service['spec']['selector'] == {'job-name': found['Job']['metadata']['name']}
    assert spec['completions'] == spec['parallelism'] > 1  # JAX counts processes by parallelism
    # What main.py ends with when it was told to stop is started again, a user's mistake is not.
    rules = {rule['onExitCodes']['values'][0]: rule['action']
             for rule in spec['podFailurePolicy']['rules'] if 'onExitCodes' in rule}
    assert rules == {75: 'Ignore', 2: 'FailJob'} and pod['restartPolicy'] == 'Never'
    assert all(rule['onExitCodes']['containerName'] == container['name']
               for rule in spec['podFailurePolicy']['rules'] if 'onExitCodes' in rule)
    assert pod['terminationGracePeriodSeconds'] >= 60
    claims = {volume['name']: volume['persistentVolumeClaim']['claimName']
              for volume in pod['volumes'] if 'persistentVolumeClaim' in volume}
    [claim] = claims.values()
    assert claim == found['PersistentVolumeClaim']['metadata']['name']
    assert found['PersistentVolumeClaim']['spec']['accessModes'] == ['ReadWriteMany']
    mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
    command = command_line.parse(container['args'])
    assert str(command.workdir).startswith(mounts[next(iter(claims))])
    chips = container['resources']['limits']
    # The driver of the GPUs is where no image looks by itself.
    paths = {one['name']: one['value'] for one in container.get('env', ())}
    assert 'nvidia.com/gpu' not in chips or paths['LD_LIBRARY_PATH'] == '/usr/local/nvidia/lib64'
    devices = spec['completions'] * (chips.get('nvidia.com/gpu') or chips['google.com/tpu'])
    assert command.config.mesh.fsdp == devices


def test_pods_with_gpus_are_a_cluster_and_find_process_0(monkeypatch):
    """By JAX's own class, with a stand-in for the cluster that gives what the manifest says, if
    the rights in the manifest allow it."""
    found = documents(GPU)
    job = found['Job']
    rights = {(resource, verb) for rule in found['Role']['rules']
              for resource in rule['resources'] for verb in rule['verbs']}
    assert found['RoleBinding']['roleRef']['name'] == found['Role']['metadata']['name']
    account = job['spec']['template']['spec']['serviceAccountName']
    assert account == found['ServiceAccount']['metadata']['name']
    assert account == found['RoleBinding']['subjects'][0]['name']

    def allowed(resource, verb, value):
        assert (resource, verb) in rights
        return value

    space = types.SimpleNamespace
    name = job['metadata']['name']
    pod = space(metadata=space(name=f'{name}-1', labels={'job-name': name}, owner_references=[
        space(controller=True, kind='Job')]), spec=space(
            subdomain=job['spec']['template']['spec']['subdomain']))
    answer = space(metadata=space(name=name, labels={}),
                   spec=space(parallelism=job['spec']['parallelism']))
    kubernetes = types.ModuleType('kubernetes')
    kubernetes.__spec__ = space(name='kubernetes')
    kubernetes.config = space(load_incluster_config=lambda: None)
    kubernetes.client = space(
        exceptions=space(ApiException=KeyError),
        CoreV1Api=lambda: space(list_namespaced_pod=lambda *_, **__: allowed(
            'pods', 'list', space(items=[pod]))),
        BatchV1Api=lambda: space(read_namespaced_job=lambda **_: allowed('jobs', 'get', answer)))
    monkeypatch.setitem(sys.modules, 'kubernetes', kubernetes)
    monkeypatch.setattr(K8sCluster, '_namespace', lambda: 'default')
    monkeypatch.setattr(socket, 'gethostbyname', lambda host: '10.0.0.2')
    pods = environment(GPU, 1)
    for key, value in pods.items():
        monkeypatch.setenv(key, value)
    assert distributed.in_cluster(pods)
    assert K8sCluster.is_env_present()
    assert K8sCluster.get_process_id() == 1
    assert K8sCluster.get_process_count() == job['spec']['completions']
    port = job['spec']['template']['spec']['containers'][0]['ports'][0]['containerPort']
    assert K8sCluster.get_coordinator_address(None, None) == f'{name}-0.{pod.spec.subdomain}:{port}'
    assert K8sCluster.get_coordinator_address(1, None) == f'{name}-0.{pod.spec.subdomain}:{port}'
    # Before the pod of process 0 has begun JAX gives up with words by which `start` tries again.
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)
    monkeypatch.setattr(socket, 'gethostbyname', unknown)
    with pytest.raises(RuntimeError, match=distributed._ABSENT):
        K8sCluster.get_coordinator_address(1, None)
    assert K8sCluster.get_local_process_id() is None  # one process has all GPUs of its node


def test_hosts_of_a_tpu_slice_are_a_cluster_and_find_process_0(monkeypatch):
    job = documents(TPU)['Job']
    pods = environment(TPU, 2)
    assert distributed.in_cluster(pods)
    for key, value in pods.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)
    monkeypatch.setattr(socket, 'gethostbyname', lambda host: '10.0.0.2')
    monkeypatch.delenv('MEGASCALE_COORDINATOR_ADDRESS', raising=False)
    monkeypatch.setattr(cloud_tpu_cluster, 'get_tpu_env_value_from_metadata', lambda key: None)
    cluster = cloud_tpu_cluster.GkeTpuCluster
    assert cluster.is_env_present()
    assert cluster.get_process_id() == 2
    assert cluster.get_process_count() == job['spec']['completions']
    ports = job['spec']['template']['spec']['containers'][0]['ports']
    assert cluster.get_coordinator_address(60, None) == 'atelier-0.atelier:8482'
    assert {'containerPort': 8482} in ports
    monkeypatch.setattr(socket, 'gethostbyname', unknown)
    with pytest.raises(RuntimeError, match=distributed._ABSENT):
        cluster.get_coordinator_address(0, None)
    # As JAX does, by either name of the list; one host alone is not a cluster.
    assert distributed.in_cluster({'TPU_PROCESS_ADDRESSES': 'a,b', 'TPU_WORKER_ID': '0'})
    assert not distributed.in_cluster({'TPU_WORKER_HOSTNAMES': 'localhost'})
