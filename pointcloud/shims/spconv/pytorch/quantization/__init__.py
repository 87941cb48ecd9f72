"""spconv.pytorch.quantization: int8 networks for TensorRT, refused by name."""

from pointcloud.shims.spconv.refusal import refuse

refuse(
    globals(),
    "get_default_spconv_qconfig_mapping get_default_spconv_trt_ptq_qconfig get_default_spconv_trt_qat_qconfig "
    "get_spconv_backend_config get_spconv_convert_custom_config get_spconv_fmod_to_qat_mapping "
    "get_spconv_prepare_custom_config get_spconv_qat_to_static_mapping prepare_spconv_torch_inference "
    "quantize_per_tensor remove_conv_add_dq transform_qdq",
    "no layer here computes in int8; accelerate(model, dtype='auto') takes the fastest type there is",
)
