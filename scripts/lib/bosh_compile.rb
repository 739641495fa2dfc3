# frozen_string_literal: true

require_relative 'bosh_release'

module BoshRelease
  # Compiles the packages of a release tarball as the BOSH agent does on a compilation VM:
  # the package's files in /var/vcap/data/compile/NAME, the packages that it depends on
  # in /var/vcap/packages, the script `packaging` under `bash -x` with the agent's four
  # variables. /var/vcap is below DIR/var, mounted in a mount namespace of its own; the
  # network namespace has no interface that is up.
  class Compilation
    PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
    # Arguments: DIR, name and version of the package.
    INSIDE = <<~'SHELL'
      mount --bind "$1/var" /var
      cd "/var/vcap/data/compile/$2"
      exec env -i PATH="$PATH" BOSH_COMPILE_TARGET="$PWD" BOSH_INSTALL_TARGET="/var/vcap/packages/$2" \
          BOSH_PACKAGE_NAME="$2" BOSH_PACKAGE_VERSION="$3" bash -x packaging
    SHELL

    def initialize(tarball, directory)
      @tarball = tarball
      @directory = File.expand_path(directory)
      @release = "#{@directory}/release"
      @vcap = "#{@directory}/var/vcap"
    end

    # Compiles these packages, all without a name, and those that they depend on.
    def run(names)
      unpack
      known = @manifest['packages'].to_h { |package| [package['name'], package] }
      unknown = names - known.keys
      raise Error, "the release has no package #{unknown.join(', ')}" unless unknown.empty?

      order(known, names.empty? ? known.keys : names).each { |name| compile(known[name]) }
    end

    private

    def unpack
      [@release, "#{@directory}/log", "#{@vcap}/packages"].each { |directory| FileUtils.mkdir_p(directory) }
      FileUtils.mkdir_p("#{@directory}/var/tmp")
      File.chmod(0o1777, "#{@directory}/var/tmp")
      extract(@tarball, @release)
      @manifest = YAML.safe_load_file("#{@release}/release.MF")
    end

    def order(known, names)
      names.flat_map { |name| order(known, known[name]['dependencies']) + [name] }.uniq
    end

    def compile(package)
      name = package['name']
      started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      lay_out(package)
      log = "#{@directory}/log/#{name}.log"
      ok = system({ 'PATH' => PATH }, *namespaces, 'bash', '-ec', INSIDE, 'bash', @directory, name,
                  package['version'], out: log, err: %i[child out])
      raise Error, "package #{name} does not compile: #{log} ends with\n#{tail(log)}" unless ok

      FileUtils.rm_rf("#{@vcap}/data/compile/#{name}")
      seconds = (Process.clock_gettime(Process::CLOCK_MONOTONIC) - started).round
      puts "#{name}: compiled in #{seconds} s, #{size(name)} MB"
    end

    def lay_out(package)
      name = package['name']
      compile = "#{@vcap}/data/compile/#{name}"
      installed = "data/packages/#{name}/#{package['version']}"
      [compile, "#{@vcap}/#{installed}", "#{@vcap}/packages/#{name}"].each { |path| FileUtils.rm_rf(path) }
      [compile, "#{@vcap}/#{installed}"].each { |directory| FileUtils.mkdir_p(directory) }
      FileUtils.ln_s("/var/vcap/#{installed}", "#{@vcap}/packages/#{name}")
      extract("#{@release}/packages/#{name}.tgz", compile)
    end

    def namespaces
      ['unshare', '--mount', '--net', *(['--user', '--map-root-user'] unless Process.uid.zero?)]
    end

    def extract(archive, directory)
      system('tar', '-xzf', archive, '--no-same-owner', '-C', directory) or raise Error, "cannot unpack #{archive}"
    end

    def size(name)
      files = Dir.glob("#{@vcap}/data/packages/#{name}/**/*").select { |file| File.file?(file) }
      files.sum { |file| File.size(file) } / 1_000_000
    end

    def tail(log) = File.readlines(log).last(15).join
  end
end
