# A table in Markdown of what `ncu --csv --page raw` says: a row for each kernel's name, means over
# its launches, and its three largest stall reasons (cycles that a warp waits for each instruction).
# Other lines of the file are skipped. Fails if there was no kernel.
#
#     awk -v title=TEXT -f gpu_profile.awk FILE

function number(text) {
    gsub(",", "", text)
    return text + 0
}

function reasons(kernel,    i, j, best, largest, used, text) {
    for (j = 0; j < 3; j++) {
        largest = 0
        for (i in stall)
            if (!(i in used) && sum[kernel, i] > largest) {
                largest = sum[kernel, i]
                best = i
            }
        if (largest == 0)
            break
        used[best] = 1
        text = text (j ? ", " : "") sprintf("%s %.1f", stall[best], largest / count[kernel])
    }
    return text
}

BEGIN { FS = "\",\"" }

!/^"/ { next }

{
    sub(/^"/, "", $1)
    sub(/"\r?$/, "", $NF)
}

$1 == "ID" {
    for (i = 1; i <= NF; i++) {
        if ($i == "Kernel Name") name = i
        else if ($i ~ /^gpu__time_duration/) time = i
        else if ($i ~ /^dram__bytes_read/) bytes = i
        else if ($i ~ /^dram__throughput/) dram = i
        else if ($i ~ /^sm__warps_active/) active = i
        else if ($i ~ /_stalled_/) {
            stall[i] = $i
            sub(/.*_stalled_/, "", stall[i])
            sub(/_per_issue.*/, "", stall[i])
        }
    }
    next
}

$1 == "" || !name { next } # the line of units

{
    kernel = $name
    sub(/\(.*/, "", kernel)
    if (!(kernel in count))
        order[++kernels] = kernel
    count[kernel]++
    for (i = 1; i <= NF; i++)
        sum[kernel, i] += number($i)
}

END {
    if (!kernels)
        exit 1
    print "### " title "\n"
    print "| kernel | launches | us each | us in all | GB/s read | % of DRAM | % warps active |" \
        " stalls |"
    print "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    for (k = 1; k <= kernels; k++) {
        kernel = order[k]
        n = count[kernel]
        ns = sum[kernel, time]
        all += ns
        printf("| %s | %d | %.2f | %.1f | %.0f | %.1f | %.1f | %s |\n", kernel, n, ns / n / 1e3,
            ns / 1e3, ns ? sum[kernel, bytes] / ns : 0, sum[kernel, dram] / n,
            sum[kernel, active] / n, reasons(kernel))
    }
    printf "| all | | | %.1f | | | | |\n\n", all / 1e3
}
