package main

import (
	"encoding/csv"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// panels are what is drawn of the points. Not every point has all of it: a log is
// restarted at a few sizes only.
var panels = []struct {
	title string
	of    func(point) float64
	goal  float64
}{
	{"CPU per event, µs", func(p point) float64 { return p.CPU }, 0},
	{"stored and converted, events/s", func(p point) float64 { return p.Rate }, 0},
	{"start, s", func(p point) float64 { return p.Start }, 3},
	{"GetOrder, median, ms", func(p point) float64 { return p.Read }, 0},
	{"resident memory after a start, MB", func(p point) float64 { return p.Memory }, 400},
	{"on disk, MB", func(p point) float64 { return p.Disk }, 0},
}

const (
	panelWidth, panelHeight  = 340.0, 200.0
	left, right, above, foot = 60.0, 20.0, 34.0, 36.0
	columns                  = 3
)

// writePlot draws points as an SVG, and writes them as CSV beside it.
func writePlot(file string, points []point) error {
	if err := writePoints(strings.TrimSuffix(file, ".svg")+".csv", points); err != nil {
		return err
	}
	var b strings.Builder
	rows := (len(panels) + columns - 1) / columns
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%g" height="%g" font-family="sans-serif" font-size="11">`+"\n"+`<rect width="100%%" height="100%%" fill="white"/>`+"\n",
		columns*panelWidth, float64(rows)*panelHeight)
	for i, panel := range panels {
		fmt.Fprintf(&b, `<g transform="translate(%g %g)">`+"\n", float64(i%columns)*panelWidth, float64(i/columns)*panelHeight)
		drawPanel(&b, panel.title, points, panel.of, panel.goal)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return os.WriteFile(file, []byte(b.String()), 0o644)
}

// drawPanel draws one value over the number of orders, which is logarithmic; the
// value begins at 0. A goal is a dashed line.
func drawPanel(b *strings.Builder, title string, points []point, of func(point) float64, goal float64) {
	points = slices.DeleteFunc(slices.Clone(points), func(p point) bool { return of(p) == 0 })
	if len(points) == 0 {
		return
	}
	top := goal
	for _, p := range points {
		top = max(top, of(p))
	}
	tick := niceTick(top)
	top = math.Ceil(top/tick) * tick
	first, last := math.Floor(math.Log10(smallest)), math.Log10(float64(max(points[len(points)-1].Orders, 10*smallest)))
	x := func(orders float64) float64 {
		return left + (math.Log10(orders)-first)/(last-first)*(panelWidth-left-right)
	}
	y := func(value float64) float64 { return above + (1-value/top)*(panelHeight-above-foot) }
	fmt.Fprintf(b, `<text x="%g" y="18" font-weight="bold">%s</text>`+"\n", left, title)
	for value := 0.0; value <= top*1.001; value += tick {
		fmt.Fprintf(b, `<path d="M%g %.1fH%g" stroke="#ddd"/><text x="%g" y="%.1f" text-anchor="end">%s</text>`+"\n", left, y(value), panelWidth-right, left-6, y(value)+4,
			strconv.FormatFloat(math.Round(value*1e6)/1e6, 'f', -1, 64))
	}
	for power := first; power <= last+0.001; power++ {
		fmt.Fprintf(b, `<text x="%.1f" y="%g" text-anchor="middle">%.0f</text>`+"\n", x(math.Pow(10, power)), panelHeight-foot+16, math.Pow(10, power))
	}
	if goal > 0 {
		fmt.Fprintf(b, `<path d="M%g %.1fH%g" stroke="#c33" stroke-dasharray="5 4"/>`+"\n", left, y(goal), panelWidth-right)
	}
	var line []string
	for _, p := range points {
		at := fmt.Sprintf("%.1f,%.1f", x(float64(p.Orders)), y(of(p)))
		line = append(line, at)
		cx, cy, _ := strings.Cut(at, ",")
		fmt.Fprintf(b, `<circle cx="%s" cy="%s" r="2.5" fill="#36c"/>`+"\n", cx, cy)
	}
	fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="#36c" stroke-width="1.5"/>`+"\n", strings.Join(line, " "))
}

// niceTick divides an axis into two to five parts of 1, 2 or 5 by a power of ten.
func niceTick(top float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(top)))
	for _, factor := range []float64{0.2, 0.5, 1} {
		if top/(power*factor) <= 5 {
			return power * factor
		}
	}
	return 2 * power
}

// writePoints leaves empty what a point has not.
func writePoints(file string, points []point) error {
	var b strings.Builder
	w := csv.NewWriter(&b)
	header := []string{"orders"}
	for _, panel := range panels {
		header = append(header, panel.title)
	}
	w.Write(header)
	for _, p := range points {
		record := []string{strconv.Itoa(p.Orders)}
		for _, panel := range panels {
			text := ""
			if value := panel.of(p); value != 0 {
				text = strconv.FormatFloat(value, 'g', 5, 64)
			}
			record = append(record, text)
		}
		w.Write(record)
	}
	w.Flush()
	return os.WriteFile(file, []byte(b.String()), 0o644)
}
