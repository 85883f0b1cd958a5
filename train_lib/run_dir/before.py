"""What a key means that an older config.json lacks, where that is not the default of today."""

BEFORE = {  # {dotted key: value}
    'data.rules': 1, 'image.range16': 'full', 'schedule.rules': 1, 'eval.ties': 'first',
    'loss.counts': 'data', 'loss.example_weights': True, 'split.tolerance': 0.0,
    'finetune.levels': 'groups', 'optimizer.clip_first': False, 'mesh.gradients': 'compute',
    'saved_activations': 'all', 'finetune.lora.layers':
        r'blocks/.*/(qkv|q_proj|k_proj|v_proj|proj|fc1|fc1_g|fc1_x|fc2)'}
