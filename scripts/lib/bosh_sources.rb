# frozen_string_literal: true

require 'json'
require_relative 'bosh_release'

module BoshRelease
  # Fills the parts of a release directory that git does not keep.
  class Sources
    TARGET = 'x86_64-unknown-linux-gnu'
    # What the programs are compiled from: without documents, tests and the release itself.
    LEFT_OUT = %w[.ci .editorconfig .gitignore bosh clippy.toml CONTRIBUTING.md deny.toml docs README.md
                  rustfmt.toml rust-toolchain.toml scripts].freeze
    TESTS = %w[*/tests dev/*/tests */fixtures].freeze
    CRATES = %w[lock-server syncer policy-store cell-agent ctl].freeze

    def initialize(root, directory = "#{root}/bosh")
      @root = root
      @directory = directory
      @source = "#{directory}/src/portcullis"
    end

    def commit = git('rev-parse', '--short', 'HEAD')
    def time = git('log', '-1', '--format=%ct')
    def uncommitted? = !git('status', '--porcelain').empty?

    def prepare(toolchain:, stand_ins:)
      fill
      Blobs.new(@directory).prepare(toolchain: toolchain, stand_ins: stand_ins)
    end

    # Everything but the blobs.
    def fill
      unpack_workspace
      vendor
      FileUtils.cp("#{@root}/LICENSE", "#{@directory}/LICENSE")
    end

    private

    # The tracked files as they are: the commit, or the changed work tree.
    def unpack_workspace
      warn 'bosh-release: the work tree has uncommitted changes, which go into the release' if uncommitted?
      tree = [git('stash', 'create'), 'HEAD'].find { |name| !name.empty? }
      FileUtils.rm_rf(@source)
      FileUtils.mkdir_p(@source)
      paths = LEFT_OUT.map { |path| ":(exclude)#{path}" } + TESTS.map { |path| ":(exclude,glob)#{path}/**" }
      results = Open3.pipeline(['git', '-C', @root, 'archive', tree, '--', '.', *paths], ['tar', '-x', '-C', @source])
      raise Error, 'git archive failed' unless results.all?(&:success?)
    end

    def vendor
      run('cargo', 'vendor', '--quiet', '--locked', '--versioned-dirs', 'vendor')
      selection = CRATES.flat_map { |crate| ['-p', crate] }
      tree = run('cargo', 'tree', '--locked', '--quiet', '--edges', 'normal,build', '--target', TARGET,
                 '--prefix', 'none', '--format', '{p}', *selection)
      compiled = tree.lines.map { |line| line.sub(/\A(\S+) v(\S+).*/m, '\1-\2') }
      (Dir.children("#{@source}/vendor") - compiled).each { |crate| empty("#{@source}/vendor/#{crate}") }
    end

    # Cargo reads the manifest of every crate in Cargo.lock, and the code of those that it
    # compiles. Two thirds of the vendored bytes are for other platforms and for tests.
    def empty(crate)
      checksum = JSON.parse(File.read("#{crate}/.cargo-checksum.json"))
      manifest = File.read("#{crate}/Cargo.toml")
      FileUtils.rm_rf(crate)
      FileUtils.mkdir_p("#{crate}/src")
      File.write("#{crate}/Cargo.toml", manifest)
      File.write("#{crate}/src/lib.rs", '')
      File.write("#{crate}/.cargo-checksum.json", JSON.generate(checksum.merge('files' => {})))
    end

    def git(*arguments) = run('git', *arguments, directory: @root)

    def run(*command, directory: @source)
      output, status = Open3.capture2(*command, chdir: directory)
      raise Error, "#{command.join(' ')} failed in #{directory}" unless status.success?

      output.strip
    rescue Errno::ENOENT
      raise Error, "#{command.first} is missing"
    end
  end

  # The blobs of a release directory, which git does not keep.
  class Blobs
    RUST = %r{\Arust-[^/]+/(rust-(.+)-(x86_64-unknown-linux-gnu))\.tar\.xz\z}
    # Path of a blob to the address of its file.
    SOURCES = {
      %r{\Anftables/((lib\w+|nftables)-.*)} => 'https://www.netfilter.org/pub/\2/\1',
      %r{\Arust-[^/]+/(.*)} => 'https://static.rust-lang.org/dist/\1'
    }.freeze

    def initialize(directory, sources: SOURCES)
      @directory = directory
      @sources = sources
      @known = Directory.new(directory).blobs
    end

    # Gets each missing blob, or makes it if the options say so, and checks all.
    def prepare(toolchain:, stand_ins:)
      @known.each do |name, blob|
        obtain(name, toolchain, stand_ins) unless File.exist?(path(name))
        check(name, blob, toolchain, stand_ins)
      end
    end

    private

    def path(name) = "#{@directory}/blobs/#{name}"

    def obtain(name, toolchain, stand_ins)
      FileUtils.mkdir_p(File.dirname(path(name)))
      if toolchain && name.match?(RUST)
        pack_toolchain(name)
      elsif stand_ins
        File.write(path(name), '')
      else
        download(name)
      end
    end

    def download(name)
      pattern, address = @sources.find { |key, _| name.match?(key) } || raise(Error, "no source is known for #{name}")
      url = name.sub(pattern, address)
      warn "bosh-release: downloading #{url}"
      part = "#{path(name)}.part"
      unless system('curl', '--fail', '--silent', '--show-error', '--location', '--output', part, url)
        FileUtils.rm_f(part)
        raise Error, "cannot download #{url}; without network, put the file at #{path(name)}"
      end
      File.rename(part, path(name))
    end

    def check(name, blob, toolchain, stand_ins)
      digest = "sha256:#{Digest::SHA256.file(path(name)).hexdigest}"
      return if digest == blob['sha']

      if toolchain && name.match?(RUST)
        warn "bosh-release: #{name} is packed from this machine's toolchain (#{digest}), not the official tarball"
      elsif stand_ins && File.empty?(path(name))
        warn "bosh-release: #{name} is a stand-in; its package does not compile"
      else
        raise Error, "#{path(name)}: the digest is #{digest}, config/blobs.yml says #{blob['sha']}"
      end
    end

    # The components of the official tarball that the package installs, from the lists
    # of files that rustup keeps.
    def pack_toolchain(name)
      folder, version, target = name.match(RUST).captures
      sysroot = toolchain_root(version)
      Dir.mktmpdir('bosh-release') do |staging|
        { 'rustc' => 'rustc', 'cargo' => 'cargo', 'rust-std' => "rust-std-#{target}" }.each do |list, component|
          manifest = "#{sysroot}/lib/rustlib/manifest-#{list}-#{target}"
          copy_component(sysroot, manifest, "#{staging}/#{folder}/#{component}")
        end
        compress(staging, folder, path(name))
      end
    end

    def toolchain_root(version)
      found = `rustc --version`
      raise Error, "rustc #{version} is needed, not: #{found}" unless found.start_with?("rustc #{version} ")

      `rustc --print sysroot`.strip
    end

    def copy_component(sysroot, manifest, folder)
      raise Error, "#{manifest} is missing: the toolchain is not from rustup" unless File.exist?(manifest)

      files = File.readlines(manifest, chomp: true).flat_map { |line| listed(sysroot, line) }
      files.each do |file|
        FileUtils.mkdir_p(File.dirname("#{folder}/#{file}"))
        FileUtils.cp("#{sysroot}/#{file}", "#{folder}/#{file}", preserve: true)
      end
    end

    def listed(sysroot, line)
      kind, file = line.split(':', 2)
      return [file] if kind == 'file'

      Dir.glob("#{file}/**/*", base: sysroot).reject { |name| File.directory?("#{sysroot}/#{name}") }
    end

    # The block size makes the result independent of the number of threads.
    def compress(staging, folder, file)
      BoshRelease.pack("#{file}.part", staging, [folder], ['xz', '-2', '--threads=2', '--block-size=16MiB'])
      File.rename("#{file}.part", file)
    end
  end
end
