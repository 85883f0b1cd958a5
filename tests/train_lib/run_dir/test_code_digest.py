import pytest

from train_lib.run_dir.code_digest import PARTS, code_digest


@pytest.fixture
def root(tmp_path):
    for part in PARTS:
        path = tmp_path / part
        path = path if part.endswith('.py') else path / 'deep' / 'a.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'# {part}\n')
    return tmp_path


def fresh(root):
    code_digest.cache_clear()
    return code_digest(root)


def test_every_file_and_its_name_count(root):
    digests = [fresh(root)]
    for part in PARTS:
        path = root / part if part.endswith('.py') else root / part / 'deep' / 'a.py'
        path.write_text(path.read_text().replace('# ', '#!'))  # as long as before
        digests.append(fresh(root))
    (root / 'models/deep/a.py').rename(root / 'models/deep/b.py')
    digests.append(fresh(root))
    (root / 'models/deep/c.py').write_text('')
    digests.append(fresh(root))
    assert len(set(digests)) == len(digests)
    assert all(len(one) == 64 for one in digests)


def test_other_files_do_not_count(root):
    before = fresh(root)
    for name in ('configs/a.py', 'models/notes.txt', 'tests/a.py', 'models/a.pyc'):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text('x')
    assert fresh(root) == before


def test_a_process_keeps_the_digest_of_its_start(root):
    before = fresh(root)
    (root / 'main.py').write_text('edited while it runs')
    assert code_digest(root) == before
    assert fresh(root) != before
    code_digest.cache_clear()
