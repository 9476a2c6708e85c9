package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Nobody's address goes to a terminal, and no archive comes from one.
func TestNoArchiveInATerminal(t *testing.T) {
	_, program := openTerminal(t)
	dir := t.TempDir()
	for _, args := range [][]string{{"export", "--data-dir", dir, "-"}, {"import", "--data-dir", filepath.Join(dir, "new"), "-"}} {
		var errors bytes.Buffer
		err := run(t.Context(), args, program, program, &errors)
		if err == nil || !strings.Contains(err.Error(), "terminal") {
			t.Errorf("%v: %v", args, err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}
