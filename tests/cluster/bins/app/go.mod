module heddle/tests/cluster/app

go 1.26.0

tool github.com/hashicorp/http-echo

require github.com/hashicorp/http-echo v1.0.0 // indirect
