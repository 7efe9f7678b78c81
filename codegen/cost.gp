# Loss against memory and latency of one request, for P streams and for larger models of the same
# predicted loss: the CSV of codegen/cost_main.lua as an SVG.
#     gnuplot -e "csv='FILE'; svg='FILE'; device='KEY'; title='TEXT'" codegen/cost.gp
set terminal svg size 900,400 font "sans,12" background "white"
set output svg
set datafile separator ","
set datafile missing "NaN"
set multiplot layout 1,2 title title
set ylabel "predicted loss"
chosen(way) = strcol(1) eq device && column(2) == 1 && (strcol(4) eq way || column(3) == 1)
do for [field in "10 11"] {
    unit = field == 10 ? 2.0 ** 30 : 1
    set xlabel field == 10 ? "memory, GiB" : "latency, s"
    plot csv using (chosen("streams") ? column(int(field)) / unit : NaN):9 \
             with linespoints linewidth 2 pointtype 7 title "P = 1, 2, 4, 8", \
         csv using (chosen("law") ? column(int(field)) / unit : NaN):9 \
             with linespoints linewidth 2 pointtype 6 title "larger model, P = 1"
}
