// Streams as Kubernetes' JavaScript client uses them. What it talks to is described in ../apiserver/serve.py.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { PassThrough, Readable, Writable } from 'node:stream';
import { suite, test } from 'node:test';
import { Attach, Exec, KubeConfig, PortForward } from '@kubernetes/client-node';

const api = process.env.POD_API;
const [ECHO, RESET, ZEROS, NOBODY] = [8000, 8002, 8003, 8009];
const BIG = 10 << 20;
let containers = 0;

const config = new KubeConfig();
config.loadFromClusterAndUser({ name: 'pod', server: api, skipTLSVerify: true }, { name: 'nobody' });

const numbers = Buffer.from(Array.from({ length: 1_700_000 }, (_, index) => `${index + 1}\n`).join(''));

const sha256 = (data) => createHash('sha256').update(data).digest('hex');

// Collects what is written, and tells when it has some text.
class Sink extends Writable {
  pieces = [];
  _write(piece, _encoding, done) {
    this.pieces.push(piece);
    done();
    this.emit('more');
  }
  get data() {
    return Buffer.concat(this.pieces);
  }
  get text() {
    return this.data.toString();
  }
  async shows(text) {
    while (!this.text.includes(text)) await once(this, 'more');
  }
  async holds(length) {
    const got = () => this.pieces.reduce((sum, piece) => sum + piece.length, 0);
    while (got() < length) await once(this, 'more');
  }
}

// What the client takes for a terminal.
class Screen extends Sink {
  rows = 30;
  columns = 100;
}

async function container(command, { stdin = false, tty = false } = {}) {
  const id = `c${containers++}`;
  const query = new URLSearchParams({ stdin, tty });
  for (const part of command) query.append('command', part);
  const response = await fetch(`${api}/containers/${id}?${query}`, { method: 'POST' });
  assert.equal(response.status, 200);
  return id;
}

// A session of exec: `status` comes when it has ended, as does `closed`, the code of the close.
async function exec(command, { stdin = null, tty = false, stdout = new Sink(), pod = 'pod' } = {}) {
  const stderr = tty ? null : new Sink();
  const [status, told] = promise();
  const socket = await new Exec(config).exec('default', 'pod', pod, command, stdout, stderr, stdin, tty, told);
  const closed = once(socket, 'close').then(([code]) => code);
  return { socket, stdout, stderr, status, closed };
}

function promise() {
  let resolve;
  return [new Promise((found) => (resolve = found)), (value) => resolve(value)];
}

// The exit code of a status.
function code(status) {
  if (status.status === 'Success') return 0;
  assert.equal(status.reason, 'NonZeroExitCode', JSON.stringify(status));
  return Number(status.details.causes.find((cause) => cause.reason === 'ExitCode').message);
}

suite('exec', () => {
  test('keeps the streams apart', async () => {
    const session = await exec(['sh', '-c', 'echo out; echo err >&2']);
    assert.equal(session.socket.protocol, 'v5.channel.k8s.io');
    assert.equal(code(await session.status), 0);
    assert.equal(await session.closed, 1000);
    assert.deepEqual([session.stdout.text, session.stderr.text], ['out\n', 'err\n']);
  });

  for (const tty of [false, true]) {
    for (const [end, expected] of [['exit 0', 0], ['exit 1', 1], ['exit 42', 42], ['kill -9 $$', 137]]) {
      test(`tells the code of ${end} ${tty ? 'on a terminal' : 'without a terminal'}`, async () => {
        const session = await exec(['sh', '-c', `echo last words; ${end}`], { tty });
        assert.equal(code(await session.status), expected);
        assert.match(session.stdout.text, /last words/);
      });
    }
  }

  test('delivers big output', async () => {
    const session = await exec(['sh', '-c', 'seq 1 1700000; exit 42']);
    assert.equal(code(await session.status), 42);
    assert.equal(sha256(session.stdout.data), sha256(numbers));
  });

  test('takes stdin to its end', async () => {
    const session = await exec(['sha256sum'], { stdin: Readable.from([numbers], { objectMode: false }) });
    assert.equal(code(await session.status), 0);
    assert.equal(session.stdout.text.split(' ')[0], sha256(numbers));
  });

  test('carries big data both ways at once', async () => {
    const session = await exec(['cat'], { stdin: Readable.from([numbers], { objectMode: false }) });
    assert.equal(code(await session.status), 0);
    assert.equal(sha256(session.stdout.data), sha256(numbers));
  });

  test('on a terminal is typed at and resized', async () => {
    const [stdin, stdout] = [new PassThrough(), new Screen()];
    const session = await exec(['sh'], { stdin, stdout, tty: true });
    stdin.write("until stty size | grep '^30 100'; do :; done\n");
    await stdout.shows('30 100\r\n');
    Object.assign(stdout, { rows: 20, columns: 90 });
    stdout.emit('resize');
    stdin.write("until stty size | grep '^20 90'; do :; done; exit 42\n");
    assert.equal(code(await session.status), 42);
  });

  test('of what is not there is a failure', async () => {
    const session = await exec(['no-such-program']);
    const status = await session.status;
    assert.equal(status.status, 'Failure');
    assert.match(status.message, /no-such-program/);
  });

  test('in what is not there is refused', async () => {
    await assert.rejects(exec(['true'], { pod: 'nobody' }), (event) => /500/.test(event.message));
  });
});

suite('attach', () => {
  test('types and sees both streams to the end', async () => {
    const script = 'while read a; do echo out $a; echo err $a >&2; [ $a != end ] || exit 5; done';
    const id = await container(['sh', '-c', script], { stdin: true });
    const [stdin, stdout, stderr] = [new PassThrough(), new Sink(), new Sink()];
    const socket = await new Attach(config).attach('default', 'pod', id, stdout, stderr, stdin, false);
    const closed = once(socket, 'close');
    stdin.write('one\n');
    await stdout.shows('out one\n');
    stdin.write('end\n');
    assert.equal((await closed)[0], 1000);
    assert.deepEqual([stdout.text, stderr.text], ['out one\nout end\n', 'err one\nerr end\n']);
  });

  test('to a terminal is typed at and resized', async () => {
    const id = await container(['sh'], { stdin: true, tty: true });
    const [stdin, stdout] = [new PassThrough(), new Screen()];
    const socket = await new Attach(config).attach('default', 'pod', id, stdout, null, stdin, true);
    const closed = once(socket, 'close');
    stdin.write("until stty size | grep '^30 100'; do :; done; exit 3\n");
    await stdout.shows('30 100\r\n');
    assert.equal((await closed)[0], 1000);
  });
});

suite('port forward', () => {
  async function forward(port) {
    const [output, errors, input] = [new Sink(), new Sink(), new PassThrough()];
    const socket = await new PortForward(config).portForward('default', 'pod', [port], output, errors, input);
    return { output, errors, input, socket, closed: once(socket, 'close') };
  }

  test('carries bytes both ways', async () => {
    const [first, second] = [await forward(ECHO), await forward(ECHO)];
    first.input.write('hello');
    await first.output.shows('hello');
    second.input.write(numbers);
    await second.output.holds(numbers.length);
    assert.equal(sha256(second.output.data), sha256(numbers));
    first.input.write(' again');
    await first.output.shows('hello again');
    for (const { input, errors, closed } of [first, second]) {
      // This client ends its connection with its input.
      input.end();
      await closed;
      assert.equal(errors.text, '');
    }
  });

  test('delivers a big answer and its end', async () => {
    const { output, errors, closed } = await forward(ZEROS);
    assert.equal((await closed)[0], 1000);
    assert.equal(sha256(output.data), sha256(Buffer.alloc(BIG)));
    assert.equal(errors.text, '');
  });

  test('ends with a reset of the pod', async () => {
    const { input, output, errors, closed } = await forward(RESET);
    input.write('a good deal');
    assert.equal((await closed)[0], 1000);
    assert.deepEqual([output.text, errors.text], ['', '']);
  });

  test('to a port of nobody tells it', async () => {
    const { output, errors, closed } = await forward(NOBODY);
    assert.equal((await closed)[0], 1000);
    assert.equal(output.text, '');
    assert.match(errors.text, /connection refused/);
  });
});
