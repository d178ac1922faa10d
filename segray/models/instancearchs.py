"""Names of the instance architectures; torch is not needed to know them."""

INSTANCE_ARCHITECTURES = ("compact-maskrcnn", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
