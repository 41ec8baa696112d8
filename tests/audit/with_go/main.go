// Verifies what Confide signs with the code of Go's own checksum database (golang.org/x/mod/sumdb), which shares nothing
// with Confide's:
//
//	go run main.go VKEY CHECKPOINT [INCLUSION [CONSISTENCY OLD]]
//
// CHECKPOINT and OLD are signed notes, INCLUSION and CONSISTENCY the answers of /v1/audit/proof/inclusion and
// /v1/audit/proof/consistency. Prints what was verified, a line each; exits with 1 at the first thing that is not.
package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type proof struct {
	Leaf, Size, From, To int64
	Entry, Checkpoint    string
	Proof                []string
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func hash(text string) (out tlog.Hash) {
	data, err := base64.StdEncoding.Strict().DecodeString(text)
	if err == nil && len(data) != tlog.HashSize {
		err = fmt.Errorf("a hash of %d bytes", len(data))
	}
	check(err)
	copy(out[:], data)
	return out
}

func open(text []byte, verifier note.Verifier) (origin string, size int64, root tlog.Hash) {
	opened, err := note.Open(text, note.VerifierList(verifier))
	check(err)
	lines := strings.Split(opened.Text, "\n")
	size, err = strconv.ParseInt(lines[1], 10, 64)
	check(err)
	return lines[0], size, hash(lines[2])
}

func read(path string) (found proof, hashes []tlog.Hash) {
	text, err := os.ReadFile(path)
	check(err)
	check(json.Unmarshal(text, &found))
	for _, one := range found.Proof {
		hashes = append(hashes, hash(one))
	}
	return found, hashes
}

func main() {
	args := os.Args[1:]
	verifier, err := note.NewVerifier(args[0])
	check(err)
	text, err := os.ReadFile(args[1])
	check(err)
	origin, size, root := open(text, verifier)
	fmt.Printf("checkpoint %s %d\n", origin, size)
	if len(args) > 2 {
		found, hashes := read(args[2])
		_, size, root := open([]byte(found.Checkpoint), verifier)
		check(tlog.CheckRecord(hashes, size, root, found.Leaf, tlog.RecordHash([]byte(found.Entry))))
		fmt.Printf("leaf %d of %d\n", found.Leaf, size)
	}
	if len(args) > 4 {
		found, hashes := read(args[3])
		old, err := os.ReadFile(args[4])
		check(err)
		_, before, oldRoot := open(old, verifier)
		if found.From != before || found.To != size {
			check(fmt.Errorf("the proof is from %d to %d, the checkpoints are of %d and %d", found.From, found.To, before, size))
		}
		check(tlog.CheckTree(hashes, size, root, before, oldRoot))
		fmt.Printf("%d extends %d\n", size, before)
	}
}
