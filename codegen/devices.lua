-- Devices by their published figures: memory in GB (1e9 bytes), its bandwidth in GB/s, and TFLOP/s
-- of dense FP16 products. NVIDIA states a Jetson's sparse rate in 8 bits (the GPUs of the Orins:
-- 170, 60, 40) or 4 (Thor: 2070); a quarter and an eighth of it is dense FP16. report.md uses the
-- bandwidth alone.
return {
    { key = "h200", name = "NVIDIA H200", memory = 141, bandwidth = 4800, tflops = 989.4 },
    { key = "h100", name = "NVIDIA H100 SXM", memory = 80, bandwidth = 3350, tflops = 989.4 },
    { key = "a100", name = "NVIDIA A100 80GB SXM", memory = 80, bandwidth = 2039, tflops = 312 },
    { key = "thor", name = "Jetson Thor", memory = 128, bandwidth = 273, tflops = 258.75 },
    { key = "agx-orin", name = "Jetson AGX Orin", memory = 64, bandwidth = 204.8, tflops = 42.5 },
    { key = "orin-nx", name = "Jetson Orin NX 16GB", memory = 16, bandwidth = 102.4, tflops = 15 },
    { key = "orin-nano", name = "Jetson Orin Nano 8GB", memory = 8, bandwidth = 68, tflops = 10 },
    { key = "ddr5", name = "two-channel DDR5-5600", bandwidth = 89.6 },
}
