# frozen_string_literal: true

require 'minitest/autorun'
require_relative 'lib/release'
require_relative '../../scripts/lib/bosh_compile'
require_relative '../../scripts/lib/bosh_sources'

# The tarball that scripts/bosh-release writes, on a small release directory and on ours.
class ReleaseTest < Minitest::Test
  SMALL = {
    'config/final.yml' => "name: small\n",
    'config/blobs.yml' => "base/base.txt:\n  size: 5\n  sha: sha256:#{Digest::SHA256.hexdigest("blob\n")}\n",
    'LICENSE' => "licence\n",
    'jobs/server/spec' => "name: server\ntemplates:\n  b.erb: bin/b\n  a.erb: a\npackages: [app]\n",
    'jobs/server/monit' => '',
    'jobs/server/templates/a.erb' => "a\n",
    'jobs/server/templates/b.erb' => "b\n",
    'packages/base/spec' => "name: base\nfiles: [base/*]\n",
    'packages/base/packaging' => "cp base/base.txt \"$BOSH_INSTALL_TARGET/\"\n",
    'packages/app/spec' => "name: app\ndependencies: [base]\nfiles: [app/**/*]\n",
    'packages/app/packaging' => "echo app\n",
    'src/app/main.c' => "main\n",
    'src/app/.hidden' => "hidden\n",
    'src/app/sub/tool' => "tool\n",
    'blobs/base/base.txt' => "blob\n"
  }.freeze

  def setup
    @work = Dir.mktmpdir
    @root = "#{@work}/release"
    SMALL.each { |name, text| put(name, text) }
    File.chmod(0o755, "#{@root}/src/app/sub/tool")
  end

  def teardown = FileUtils.rm_rf(@work)

  def test_manifest
    manifest = write
    assert_equal manifest, YAML.safe_load(contents(tarball, 'release.MF'))
    assert_equal %w[name version commit_hash uncommitted_changes jobs packages license], manifest.keys
    assert_equal ['small', '7+dev.1', 'abc1234', false], manifest.values.first(4)
    assert_equal [['server', ['app']]], manifest['jobs'].map { |job| job.values_at('name', 'packages') }
    expected = [['app', ['base']], ['base', []]]
    assert_equal expected, manifest['packages'].map { |package| package.values_at('name', 'dependencies') }
    assert_equal %w[version fingerprint sha1], manifest['license'].keys
  end

  # The texts that BOSH hashes, written out.
  def test_fingerprints
    sum = ->(text) { Digest::SHA1.hexdigest(text) }
    app = "v2app/.hidden#{sum["hidden\n"]}100644app/main.c#{sum["main\n"]}100644" \
          "app/sub/tool#{sum["tool\n"]}100755packaging#{sum["echo app\n"]}base"
    assert_equal sum[app], fingerprint('app')
    job = "v2job.MF#{sum[SMALL['jobs/server/spec']]}100644monit#{sum['']}100644" \
          "templates/a.erb#{sum["a\n"]}100644templates/b.erb#{sum["b\n"]}100644"
    assert_equal sum[job], fingerprint('server')
    assert_equal sum["v2LICENSE#{sum["licence\n"]}"], write['license']['fingerprint']
  end

  def test_fingerprints_with_sha256
    sum = ->(text) { "sha256:#{Digest::SHA256.hexdigest(text)}" }
    manifest = write(sha2: true)
    expected = sum["v2LICENSE#{sum["licence\n"]}"].delete_prefix('sha256:')
    assert_equal expected, manifest['license']['fingerprint']
    assert_match(/\Asha256:\h{64}\z/, manifest['license']['sha1'])
  end

  def test_what_changes_a_fingerprint
    changes = {
      'app' => [-> { put('src/app/main.c', "other\n") }, -> { put('src/app/new.c', "main\n") },
                -> { File.chmod(0o755, "#{@root}/src/app/main.c") }, -> { put('packages/app/packaging', "echo\n") },
                -> { put('packages/app/spec', "name: app\nfiles: [app/**/*]\n") }],
      'server' => [-> { put('jobs/server/monit', "check\n") }, -> { put('jobs/server/templates/a.erb', "b\n") },
                   -> { put('jobs/server/spec', "#{SMALL['jobs/server/spec']}\n") }],
      'base' => [-> { put('blobs/base/base.txt', "other\n") }]
    }
    changes.each do |name, list|
      list.each_with_index do |change, number|
        before = fingerprints
        change.call
        after = fingerprints
        assert_equal [name], before.keys.reject { |key| before[key] == after[key] }, "change #{number} of #{name}"
      end
    end
  end

  def test_what_changes_no_fingerprint
    before = fingerprints
    put('jobs/server/templates/unused.erb', "x\n")
    put('src/other/file', "x\n")
    put('packages/app/spec', "# A comment.\n#{SMALL['packages/app/spec']}")
    File.chmod(0o755, "#{@root}/packages/app/packaging")
    File.chmod(0o600, "#{@root}/src/app/main.c")
    assert_equal before, fingerprints
  end

  def test_archives
    manifest = write
    entries = { 'jobs/server' => %w[./job.MF ./monit ./templates/a.erb ./templates/b.erb],
                'packages/app' => %w[./app/.hidden ./app/main.c ./app/sub/tool ./packaging],
                'packages/base' => %w[./base/base.txt ./packaging], 'license' => %w[./LICENSE] }
    entries.each do |name, files|
      archive = "#{@work}/#{File.basename(name)}.tgz"
      File.binwrite(archive, contents(tarball, "#{name}.tgz"))
      assert_equal files, listing(archive).reject { |file| file.end_with?('/') }.sort
      kind, resource = name.split('/')
      reference = resource ? manifest[kind].find { |item| item['name'] == resource } : manifest['license']
      assert_equal Digest::SHA1.file(archive).hexdigest, reference['sha1']
    end
    assert_equal SMALL['jobs/server/spec'], contents("#{@work}/server.tgz", './job.MF')
    modes = Release.run('tar', '-tvzf', "#{@work}/app.tgz").first
    assert_match(%r{^-rwxr-xr-x 0/0 .* 1970-01-01 .* \./app/sub/tool$}, modes)
    assert_match(%r{^-rw-r--r-- 0/0 .* \./app/main.c$}, modes)
    assert_equal 'release.MF', listing(tarball).first
    assert_equal "licence\n", contents(tarball, 'LICENSE')
  end

  def test_same_input_gives_same_bytes
    write
    first = File.binread(tarball)
    FileUtils.cp_r(@root, "#{@work}/copy")
    Dir.glob("#{@work}/copy/**/*").each { |path| File.utime(0, 86_400, path) }
    @root = "#{@work}/copy"
    umask = File.umask(0o077)
    begin
      write
    ensure
      File.umask(umask)
    end
    assert_equal Digest::SHA256.hexdigest(first), Digest::SHA256.file(tarball).hexdigest
  end

  def test_errors
    cases = {
      'package app: no file of src/ or blobs/ matches app/*.rs' =>
        ['packages/app/spec', "name: app\nfiles: ['app/*.rs']\n"],
      'app: there is no package nothing' => ['packages/app/spec', "name: app\ndependencies: [nothing]\n"],
      'server: there is no package nothing' =>
        ['jobs/server/spec', "name: server\ntemplates: {}\npackages: [nothing]\n"],
      'templates/c.erb is missing' => ['jobs/server/spec', "name: server\ntemplates: {c.erb: c}\npackages: []\n"],
      'the name is other, the directory is app' => ['packages/app/spec', "name: other\n"]
    }
    cases.each do |message, (file, text)|
      put(file, text)
      error = assert_raises(BoshRelease::Error) { write }
      assert_includes error.message, message
      put(file, SMALL.fetch(file))
    end
  end

  def test_blobs
    prepare_blobs
    put('blobs/base/base.txt', "other\n")
    error = assert_raises(BoshRelease::Error) { prepare_blobs(stand_ins: true) }
    assert_includes error.message, 'config/blobs.yml says sha256:'
    File.delete("#{@root}/blobs/base/base.txt")
    assert_output(nil, /base.txt is a stand-in/) { prepare_blobs(stand_ins: true) }
  end

  def test_missing_blobs_are_downloaded
    blob = "#{@root}/blobs/base/base.txt"
    FileUtils.mkdir_p("#{@work}/origin")
    FileUtils.mv(blob, "#{@work}/origin/base.txt")
    assert_output(nil, /downloading/) { prepare_blobs }
    assert_equal "blob\n", File.read(blob)
    [blob, "#{@work}/origin/base.txt"].each { |file| File.delete(file) }
    error = assert_raises(BoshRelease::Error) { capture_subprocess_io { prepare_blobs } }
    assert_includes error.message, "without network, put the file at #{blob}"
    assert_empty Dir.children(File.dirname(blob))
  end

  # Each blob of ours has an official source.
  def test_sources_of_our_blobs
    addresses = BoshRelease::Directory.new(Release::ROOT).blobs.keys.map do |name|
      pattern, address = BoshRelease::Blobs::SOURCES.find { |key, _| name.match?(key) }
      name.sub(pattern, address)
    end
    assert_equal %w[https://www.netfilter.org/pub/libmnl/libmnl-1.0.5.tar.bz2
                    https://www.netfilter.org/pub/libnftnl/libnftnl-1.2.9.tar.xz
                    https://www.netfilter.org/pub/nftables/nftables-1.1.3.tar.xz
                    https://static.rust-lang.org/dist/rust-1.95.0-x86_64-unknown-linux-gnu.tar.xz], addresses
  end

  # Real namespaces: the agent's variables, the dependency's place, no network.
  def test_compiles_as_the_agent
    put('packages/app/packaging', <<~'SHELL')
      set -euo pipefail
      [ "$PWD" = /var/vcap/data/compile/app ] && [ "$BOSH_COMPILE_TARGET" = "$PWD" ]
      [ "$BOSH_INSTALL_TARGET $BOSH_PACKAGE_NAME" = '/var/vcap/packages/app app' ]
      [ -x app/sub/tool ] && [ -z "${HOME:-}" ]
      [ "$(grep -c : /proc/net/dev)" = 1 ] && ! (: </dev/tcp/127.0.0.1/1) 2>/dev/null
      cp /var/vcap/packages/base/base.txt "$BOSH_INSTALL_TARGET/copied"
    SHELL
    write
    compilation = BoshRelease::Compilation.new(tarball, "#{@work}/vm")
    assert_output(/\Abase: compiled in .*\napp: compiled in /) { compilation.run(['app']) }
    assert_equal ["blob\n"], Dir.glob("#{@work}/vm/var/vcap/data/packages/app/*/copied").map { |file| File.read(file) }

    put('packages/app/packaging', "echo the reason\nexit 3\n")
    write
    error = assert_raises(BoshRelease::Error) { capture_io { compilation.run([]) } }
    assert_match(/package app does not compile.*\nthe reason\n/m, error.message)
  end

  # Our own release, with a small file for each blob and for the sources.
  def test_our_release
    @root = "#{@work}/ours"
    FileUtils.mkdir_p(@root)
    %w[config jobs packages].each { |name| FileUtils.cp_r("#{Release::ROOT}/#{name}", @root) }
    put('src/portcullis/vendor/crate/.cargo-checksum.json', '{}')
    directory = BoshRelease::Directory.new(@root)
    directory.blobs.each_key { |name| put("blobs/#{name}", name) }
    manifest = write
    assert_equal Release.job_names, manifest['jobs'].map { |job| job['name'] }
    assert_equal Release.package_names, manifest['packages'].map { |package| package['name'] }
    packed = directory.packages.flat_map { |package| package.entries.map(&:name) }
    assert_empty directory.blobs.keys - packed, 'blobs that no package contains'
    directory.blobs.each { |name, blob| assert_match(/\Asha256:\h{64}\z/, blob['sha'], name) }
  end

  # Cargo finds every crate of Cargo.lock in vendor/, without network.
  def test_vendored_sources_are_complete
    repository = File.dirname(Release::ROOT)
    capture_io { BoshRelease::Sources.new(repository, @root).fill }
    source = "#{@root}/src/portcullis"
    settings = ['source.crates-io.replace-with="vendored"', 'source.vendored.directory="vendor"']
    Dir.chdir(source) do
      output, ok = Release.run('unshare', '--user', '--map-root-user', '--net', 'env', "CARGO_HOME=#{@work}/cargo",
                               'cargo', 'metadata', '--offline', '--locked', '--format-version', '1',
                               *settings.flat_map { |setting| ['--config', setting] })
      assert ok, output
    end
    empty = vendored(source).select { |crate| JSON.parse(File.read("#{crate}/.cargo-checksum.json"))['files'].empty? }
    assert_includes empty.map { |crate| File.basename(crate)[/\A[a-z-]+(?=-\d)/] }, 'windows-sys'
    assert_empty empty.map { |crate| File.basename(crate) } & compiled(repository), 'emptied, but compiled'
    assert_empty Dir.glob("#{source}/{*,dev/*}/tests/*")
  end

  private

  def put(name, text)
    file = "#{@root}/#{name}"
    FileUtils.mkdir_p(File.dirname(file))
    File.write(file, text)
  end

  def prepare_blobs(stand_ins: false)
    sources = { %r{\Abase/(.*)} => "file://#{@work}/origin/\\1" }
    BoshRelease::Blobs.new(@root, sources: sources).prepare(toolchain: false, stand_ins: stand_ins)
  end

  def tarball = "#{@work}/release.tgz"

  def write(sha2: false)
    directory = BoshRelease::Directory.new(@root)
    BoshRelease::Writer.new(directory, version: '7+dev.1', commit: 'abc1234', uncommitted: false, sha2: sha2)
                       .write(tarball)
  end

  def fingerprints
    manifest = write
    (manifest['jobs'] + manifest['packages']).to_h { |item| item.values_at('name', 'fingerprint') }
  end

  def fingerprint(name) = fingerprints.fetch(name)
  def contents(archive, name) = Release.run('tar', '-xOzf', archive, name).first
  def listing(archive) = Release.run('tar', '-tzf', archive).first.lines(chomp: true)

  def vendored(source) = Dir.glob("#{source}/vendor/*")

  # The crates that the package compiles, as `name-version`.
  def compiled(repository)
    packages = BoshRelease::Sources::CRATES.flat_map { |crate| ['-p', crate] }
    tree, ok = Release.run('cargo', 'tree', '--manifest-path', "#{repository}/Cargo.toml", '--locked', '--quiet',
                           '--edges', 'normal,build', '--prefix', 'none', *packages)
    assert ok, tree
    tree.scan(/^(\S+) v(\S+)/).map { |name, version| "#{name}-#{version}" }
  end
end
